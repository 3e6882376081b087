{{/* Names, labels and ids. */}}

{{- define "postroad.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "postroad.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: postroad
{{ include "postroad.selector" . }}
{{- end -}}

{{- define "postroad.selector" -}}
app.kubernetes.io/name: postroad
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of one role's objects: (dict "root" $ "role" "queue"). */}}
{{- define "postroad.roleLabels" -}}
{{ include "postroad.labels" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "postroad.roleSelector" -}}
{{ include "postroad.selector" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "postroad.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* The cluster's id: 60 bits of a hash of namespace and release, so that every render gives the same. */}}
{{- define "postroad.clusterId" -}}
{{- if .Values.cluster.id -}}
{{ .Values.cluster.id }}
{{- else -}}
{{- printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 15 | printf "0x%s" | int64 | printf "%d" -}}
{{- end -}}
{{- end -}}

{{- define "postroad.authoritySecret" -}}
{{- default (printf "%s-authority" (include "postroad.fullname" .)) .Values.certificates.authority.secret -}}
{{- end -}}

{{/* Who signs the certificates between nodes. */}}
{{- define "postroad.signer" -}}
{{- $issuer := .Values.certificates.certManager.issuerRef -}}
{{- if eq .Values.certificates.mode "authority" -}}
Secret {{ include "postroad.authoritySecret" . }}
{{- else if $issuer.name -}}
{{ $issuer.kind }}.{{ $issuer.group }} {{ $issuer.name }}
{{- else -}}
Issuer.cert-manager.io {{ include "postroad.fullname" . }}-nodes
{{- end -}}
{{- end -}}

{{/* Not empty for an object of this release's queue: (dict "root" $ "item" …). */}}
{{- define "postroad.isQueue" -}}
{{- $labels := default dict .item.metadata.labels -}}
{{- $selector := include "postroad.roleSelector" (dict "root" .root "role" "queue") | fromYaml -}}
{{- if eq (toJson (pick $labels "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component")) (toJson $selector) -}}yes{{- end -}}
{{- end -}}

{{/* The size of a volume, so that two ways to write it compare. */}}
{{- define "postroad.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- mul $number (get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[A-Za-z]+$" .)) -}}
{{- end -}}

{{/*
Node ids: a digit for the role and the ordinal of the pod. Queue 10, 11, …; outbound 20, 21, …; control 30; every ingress pod 40.
Ingress pods keep nothing, so they can share one.
*/}}
{{- define "postroad.nodePrefix" -}}
{{- get (dict "queue" "1" "outbound" "2" "control" "3") . -}}
{{- end -}}

{{- define "postroad.ingressNode" -}}40{{- end -}}

{{- define "postroad.queueHost" -}}
{{- $name := include "postroad.fullname" .root -}}
{{ $name }}-queue-{{ .index }}.{{ $name }}-queue.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- end -}}

{{/* The address that pods listen on. */}}
{{- define "postroad.any" -}}
{{- if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end -}}
{{- end -}}
