{{/* Configuration files: TOML from values. */}}

{{/* A value. Helm reads every number as a float; whole ones are written as integers. */}}
{{- define "postroad.tomlValue" -}}
{{- if kindIs "string" . -}}
{{ toJson . }}
{{- else if kindIs "slice" . -}}
[{{ range $at, $item := . }}{{ if $at }}, {{ end }}{{ include "postroad.tomlValue" $item }}{{ end }}]
{{- else if kindIs "map" . -}}
{ {{- range $at, $key := keys . | sortAlpha }}{{ if $at }},{{ end }} {{ $key }} = {{ include "postroad.tomlValue" (get $ $key) }}{{ end }} }
{{- else if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%d" (int64 .) }}{{ else }}{{ . }}{{ end }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* A section with the sections in it: (dict "name" "queue" "values" …). */}}
{{- define "postroad.tomlSection" -}}
[{{ .name }}]
{{- $values := .values }}
{{- range $key := keys $values | sortAlpha }}
{{- if not (kindIs "map" (get $values $key)) }}
{{ $key }} = {{ include "postroad.tomlValue" (get $values $key) }}
{{- end }}
{{- end }}
{{- range $key := keys $values | sortAlpha }}
{{- if kindIs "map" (get $values $key) }}

{{ include "postroad.tomlSection" (dict "name" (printf "%s.%s" $.name $key) "values" (get $values $key)) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What identifies the cluster, as every configuration has it: (dict "root" $ "certificate" "node"). */}}
{{- define "postroad.clusterSection" -}}
[cluster]
id = {{ include "postroad.clusterId" .root }}
ledger_groups = {{ default .root.Values.queue.replicas .root.Values.cluster.ledgerGroups }}
queue = [
{{- range $index := until (int .root.Values.queue.replicas) }}
  { node = {{ include "postroad.nodePrefix" "queue" }}{{ $index }}, address = "{{ include "postroad.queueHost" (dict "root" $.root "index" $index) }}:7400" },
{{- end }}
]
authority = "/etc/postroad/tls/authority.pem"
certificate = "/etc/postroad/tls/node.pem"
key = "/etc/postroad/tls/node.key"
{{- end -}}

{{/* A role's file: what the chart decides, over the settings of the values: (dict "root" $ "role" "queue" "own" {section: …}). */}}
{{- define "postroad.config" -}}
{{- $sections := mustMergeOverwrite (dict "telemetry" (deepCopy .root.Values.telemetry)) (deepCopy (get .root.Values .role).settings) (deepCopy .own) -}}
# postroad {{ .role }}. The id of the node is in the environment: POSTROAD__NODE__ID.
{{ include "postroad.clusterSection" (dict "root" .root) }}
{{- range $name := keys $sections | sortAlpha }}

{{ include "postroad.tomlSection" (dict "name" $name "values" (get $sections $name)) }}
{{- end }}
{{- end -}}

{{- define "postroad.queueConfig" -}}
{{- $any := include "postroad.any" . -}}
{{- include "postroad.config" (dict "root" . "role" "queue" "own" (dict
  "node" (dict "data" "/var/lib/postroad/queue")
  "metrics" (dict "listen" (printf "%s:9090" $any))
  "queue" (dict "listen" (printf "%s:7400" $any)))) -}}
{{- end -}}

{{/* The ports of ingress that are on, each with the port that its pods listen on: above 1024, so that no capability is needed. */}}
{{- define "postroad.ingressPorts" -}}
{{- $pods := dict "submission" 2587 "submissions" 2465 "relay" 2525 "grpc" 5051 -}}
{{- $on := list -}}
{{- range $name := list "submission" "submissions" "relay" "grpc" -}}
{{- $port := (get $.Values.ingress.ports $name).port | int -}}
{{- if $port -}}{{- $on = append $on (dict "name" $name "port" $port "pod" (get $pods $name)) -}}{{- end -}}
{{- end -}}
{{- toJson $on -}}
{{- end -}}

{{- define "postroad.ingressConfig" -}}
{{- $any := include "postroad.any" . -}}
{{- $listeners := list -}}
{{- $own := dict "hostname" .Values.ingress.hostname -}}
{{- range include "postroad.ingressPorts" . | fromJsonArray -}}
{{- $listen := printf "%s:%d" $any (int .pod) -}}
{{- if eq .name "grpc" -}}
{{- $_ := set $own "grpc_listen" $listen -}}
{{- else -}}
{{- $service := ternary "relay" "submission" (eq .name "relay") -}}
{{- $listeners = append $listeners (dict "listen" $listen "service" $service "implicit_tls" (eq .name "submissions")) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $own "listeners" $listeners -}}
{{- $tls := dict "certificate" "/etc/postroad/server/tls.crt" "key" "/etc/postroad/server/tls.key" -}}
{{- if .Values.ingress.tls.selfSigned -}}{{- $tls = dict "self_signed" true -}}{{- end -}}
{{- include "postroad.config" (dict "root" . "role" "ingress" "own" (dict
  "metrics" (dict "listen" (printf "%s:9090" $any)) "tls" $tls "ingress" $own)) -}}
{{- end -}}

{{- define "postroad.outboundConfig" -}}
{{- include "postroad.config" (dict "root" . "role" "outbound" "own" (dict
  "node" (dict "data" "/var/lib/postroad/outbound")
  "metrics" (dict "listen" (printf "%s:9090" (include "postroad.any" .))))) -}}
{{- end -}}

{{- define "postroad.controlConfig" -}}
{{- $any := include "postroad.any" . -}}
{{- $names := list (printf "%s-console" (include "postroad.fullname" .)) (printf "%s-console.%s" (include "postroad.fullname" .) .Release.Namespace) -}}
{{- include "postroad.config" (dict "root" . "role" "control" "own" (dict
  "node" (dict "data" "/var/lib/postroad/control")
  "metrics" (dict "listen" (printf "%s:9090" $any))
  "http" (dict "listen" (printf "%s:8080" $any) "hosts" (concat $names .Values.control.hosts)))) -}}
{{- end -}}

{{- define "postroad.operatorConfig" -}}
# For an operator's commands.
{{ include "postroad.clusterSection" (dict "root" .) }}
{{- end -}}
