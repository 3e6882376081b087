{{/* What pods have in common. */}}

{{/* Not root, nothing writable but volumes, no capability, no token of the Kubernetes API. */}}
{{- define "postroad.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "postroad.containerSecurity" -}}
image: {{ include "postroad.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where a role's pods run: (dict "root" $ "role" "queue" "antiAffinity" "required"). */}}
{{- define "postroad.placement" -}}
{{- $values := get .root.Values .role -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .antiAffinity }}
affinity:
  podAntiAffinity:
    {{- if eq .antiAffinity "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "postroad.roleSelector" . | nindent 12 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "postroad.roleSelector" . | nindent 14 }}
    {{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "postroad.roleSelector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* The id of the node and the path of its configuration: (dict "role" "queue" "node" "" "root" $); `node` where it is fixed. */}}
{{- define "postroad.environment" -}}
{{- if .node }}
- {name: POSTROAD__NODE__ID, value: {{ .node | toString | quote }}}
{{- else }}
- name: POD_INDEX
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
- {name: POSTROAD__NODE__ID, value: "{{ include "postroad.nodePrefix" .role }}$(POD_INDEX)"}
{{- end }}
- {name: POSTROAD_CONFIG, value: /etc/postroad/config/{{ .role }}.toml}
{{- if and (eq .root.Values.certificates.mode "certManager") (ne .role "ingress") }}
- {name: POSTROAD__CLUSTER__CERTIFICATE, value: /etc/postroad/tls/$(POSTROAD__NODE__ID).pem}
- {name: POSTROAD__CLUSTER__KEY, value: /etc/postroad/tls/$(POSTROAD__NODE__ID).key}
{{- end }}
{{- end -}}

{{/*
Signs the certificate of this pod with the authority's key, which only these containers see:
(dict "root" $ "role" "queue" "node" "" "names" (list …)). The first does it before the pod's other containers start;
`postroad.renewContainer` beside them does it again before the certificate ends, and when the authority has changed.
*/}}
{{- define "postroad.certificateContainer" -}}
{{- if eq .root.Values.certificates.mode "authority" }}
- name: certificate
  {{- include "postroad.signingContainer" . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "postroad.renewContainer" -}}
{{- if eq .root.Values.certificates.mode "authority" }}
- name: renew
  {{- include "postroad.signingContainer" (merge (dict "renew" true) .) | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "postroad.signingContainer" -}}
{{- include "postroad.containerSecurity" .root }}
args:
  - cluster
  - certificate
  - {{ .role }}
  {{- if ne .role "operator" }}
  - --node=$(POSTROAD__NODE__ID)
  {{- end }}
  - --authority=/authority
  - --out=/etc/postroad/tls
  - --lifetime={{ .root.Values.certificates.authority.lifetime }}
  {{- if .renew }}
  - --renew
  {{- end }}
{{- if ne .role "operator" }}
env: {{- include "postroad.environment" . | nindent 2 }}
{{- end }}
resources: {{- toYaml .root.Values.operator.resources | nindent 2 }}
volumeMounts:
  - {name: authority, mountPath: /authority, readOnly: true}
  - {name: tls, mountPath: /etc/postroad/tls}
{{- end -}}

{{/* Where the certificates between nodes are: (dict "root" $ "role" "queue" "nodes" (list "10" …)). */}}
{{- define "postroad.certificateVolumes" -}}
{{- $name := include "postroad.fullname" .root -}}
{{- if eq .root.Values.certificates.mode "authority" }}
- name: authority
  secret: {secretName: {{ include "postroad.authoritySecret" .root }}, defaultMode: 0440}
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- else }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      {{- $role := .role }}
      {{- range $at, $node := .nodes }}
      {{- $file := ternary "node" (toString $node) (has $role (list "ingress" "operator")) }}
      - secret:
          name: {{ $name }}-{{ $role }}-{{ $node }}-tls
          items:
            - {key: tls.crt, path: {{ $file }}.pem}
            - {key: tls.key, path: {{ $file }}.key}
            {{- if not $at }}
            - {key: ca.crt, path: authority.pem}
            {{- end }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* The probes of every role: `metrics` is the name of the port. */}}
{{- define "postroad.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* What reaches the Kubernetes API, as kubelet would mount it: a token for one hour. */}}
{{- define "postroad.apiVolume" -}}
- name: api
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end -}}
