{{/* Parts of a pod. Of a role: dict "root" $ "role" its name, "of" its values (pomona.role). */}}

{{- define "pomona.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "pomona.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* A variable's text. JSON writes whole numbers whole, where Go writes 5e+06. */}}
{{- define "pomona.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* Settings that the chart decides, then the user's: those of the ConfigMap may not name the former. */}}
{{- define "pomona.environment" -}}
{{- $weights := .of.weights -}}
- {name: POMONA_HTTP_HOST, value: {{ .of.settings.http_host | default "::" | quote }}}
- {name: POMONA_HTTP_PORT, value: "3000"}
- {name: POMONA_GRPC_PORT, value: "3001"}
- {name: POMONA_ADMIN_PORT, value: "3002"}
- {name: POMONA_MODELS, value: {{ join "," .of.models | quote }}}
- {name: POMONA_BACKEND, value: {{ ternary "torch" "openvino" .of.gpu.enabled }}}
- {name: POMONA_DEVICE, value: {{ ternary "cuda" "cpu" .of.gpu.enabled }}}
- {name: POMONA_DRAIN_TIMEOUT_S, value: {{ include "pomona.text" .root.Values.drain.timeoutSeconds | quote }}}
{{- if .of.cached }}
- {name: POMONA_CACHE_DIR, value: /var/cache/pomona}
{{- end }}
{{- if $weights.fetch.image }}
- {name: POMONA_WEIGHTS_DIR, value: /var/cache/pomona/{{ include "pomona.checkpoints" . }}}
{{- else if $weights.claim }}
- {name: POMONA_WEIGHTS_DIR, value: /var/lib/pomona/weights}
{{- end }}
{{- if $weights.modelsFile.configMap }}
- {name: POMONA_MODELS_FILE, value: /var/lib/pomona/{{ $weights.modelsFile.key }}}
{{- end }}
{{- end }}

{{/* The user's own, which may not name those of the chart. */}}
{{- define "pomona.extraEnvironment" -}}
{{- $own := include "pomona.environment" . | fromYamlArray -}}
{{- $own = concat $own (include "pomona.accessEnvironment" .root | fromYamlArray) -}}
{{- $names := list -}}
{{- range $own }}{{ $names = append $names .name }}{{ end -}}
{{- range .of.extraEnv -}}
{{- if has .name $names }}{{ fail (printf "extraEnv: the chart sets %s itself; see values.yaml for the value that decides it." .name) }}{{ end -}}
{{- end -}}
{{- with .of.extraEnv }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* Of the server alone: which files say who may call. */}}
{{- define "pomona.accessEnvironment" -}}
{{- $access := .Values.access -}}
{{- if not (or $access.keysSecret $access.clientCaSecret $access.anonymous) }}
{{- fail "access: name a Secret with API keys (keysSecret) or with the authority of callers' certificates (clientCaSecret), or set anonymous: true; see docs/production.md." }}
{{- end }}
{{- if and $access.clientCaSecret (not .Values.tls.secretName) }}
{{- fail "access.clientCaSecret needs tls.secretName: callers present certificates over TLS." }}
{{- end }}
{{- if .Values.tls.secretName }}
- {name: POMONA_TLS_CERT_FILE, value: /etc/pomona/tls/tls.crt}
- {name: POMONA_TLS_KEY_FILE, value: /etc/pomona/tls/tls.key}
{{- end }}
{{- if $access.clientCaSecret }}
- {name: POMONA_TLS_CLIENT_CA_FILE, value: /etc/pomona/client-ca/ca.crt}
{{- end }}
{{- if $access.keysSecret }}
- {name: POMONA_API_KEYS_FILE, value: /etc/pomona/keys/{{ $access.keysKey }}}
{{- end }}
{{- if $access.anonymous }}
- {name: POMONA_ALLOW_ANONYMOUS, value: "true"}
{{- end }}
{{- end }}

{{/* As folders, not single files: what is renewed in a Secret then reaches the pod. */}}
{{- define "pomona.accessMounts" -}}
{{- if .Values.tls.secretName }}
- {name: tls, mountPath: /etc/pomona/tls, readOnly: true}
{{- end }}
{{- if .Values.access.clientCaSecret }}
- {name: client-ca, mountPath: /etc/pomona/client-ca, readOnly: true}
{{- end }}
{{- if .Values.access.keysSecret }}
- {name: keys, mountPath: /etc/pomona/keys, readOnly: true}
{{- end }}
{{- end }}

{{- define "pomona.environmentFrom" -}}
{{- if .of.settings }}
- configMapRef: {name: {{ include "pomona.roleName" . }}}
{{- end }}
{{- range .of.configMaps }}
- configMapRef: {name: {{ . }}}
{{- end }}
{{- range .of.secrets }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{/* "writes" besides: whether this container fetches and converts. */}}
{{- define "pomona.mounts" -}}
{{- $weights := .of.weights -}}
- {name: scratch, mountPath: /tmp}
{{- if .of.cached }}
- {name: cache, mountPath: /var/cache/pomona{{ if not .writes }}, readOnly: true{{ end }}}
{{- end }}
{{- if $weights.claim }}
- {name: weights, mountPath: /var/lib/pomona/weights, readOnly: true}
{{- end }}
{{- if $weights.modelsFile.configMap }}
- {name: models-file, mountPath: /var/lib/pomona/{{ $weights.modelsFile.key }}, subPath: {{ $weights.modelsFile.key }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "pomona.weightVolumes" -}}
{{- $weights := .of.weights -}}
- {name: scratch, emptyDir: {sizeLimit: 1Gi}}
{{- if $weights.cacheClaim }}
- {name: cache, persistentVolumeClaim: {claimName: {{ $weights.cacheClaim }}}}
{{- else if .of.cached }}
- {name: cache, emptyDir: {sizeLimit: {{ $weights.cacheSize }}}}
{{- end }}
{{- with $weights.claim }}
- {name: weights, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
{{- end }}
{{- with $weights.modelsFile.configMap }}
- {name: models-file, configMap: {name: {{ . }}}}
{{- end }}
{{- end }}

{{- define "pomona.accessVolumes" -}}
{{- with .Values.tls.secretName }}
- {name: tls, secret: {secretName: {{ . }}, defaultMode: 288}}   # 0440
{{- end }}
{{- with .Values.access.clientCaSecret }}
- {name: client-ca, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- with .Values.access.keysSecret }}
- {name: keys, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- end }}

{{- define "pomona.pullSecrets" -}}
{{- with .pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where in the cache a role's fetch step writes: releases and roles may share the cache. */}}
{{- define "pomona.checkpoints" -}}
checkpoints/{{ include "pomona.roleName" . }}
{{- end }}

{{/* A step that fetches checkpoints with an image of the user's, into the folder that it is started in. */}}
{{- define "pomona.fetchStep" -}}
{{- $fetch := .of.weights.fetch -}}
- name: fetch
  image: {{ $fetch.image }}
  imagePullPolicy: {{ .of.pullPolicy }}
  workingDir: /var/cache/pomona/{{ include "pomona.checkpoints" . }}
  {{- with $fetch.command }}
  command: {{ toJson . }}
  {{- end }}
  env:
    - {name: HOME, value: /tmp}
    {{- with $fetch.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $fetch.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .of.preparing | nindent 4 }}
  securityContext:
    {{- include "pomona.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: scratch, mountPath: /tmp}
    - {name: cache, mountPath: /var/cache/pomona/{{ include "pomona.checkpoints" . }}, subPath: {{ include "pomona.checkpoints" . }}}
{{- end }}

{{/* A step that fetches, verifies and converts models; "waits" besides: only until another has. */}}
{{- define "pomona.prepareStep" -}}
{{- $name := printf "%s" (ternary "wait" "weights" .waits) -}}
- name: {{ $name }}
  image: {{ ternary .of.image (.of.weights.initImage | default .of.image) (or .waits .of.gpu.enabled) }}
  imagePullPolicy: {{ .of.pullPolicy }}
  {{- if .waits }}
  command: [sh, -c, "until python -m service.prepare; do sleep 5; done"]
  {{- else }}
  command: [python, -m, service.prepare]
  {{- end }}
  env:
    {{- include "pomona.environment" . | nindent 4 }}
    {{- with include "pomona.extraEnvironment" . }}
    {{- . | nindent 4 }}
    {{- end }}
  {{- with include "pomona.environmentFrom" . | trim }}
  envFrom:
    {{- . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .of.preparing | nindent 4 }}
  securityContext:
    {{- include "pomona.containerSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "pomona.mounts" (merge (dict "writes" (not .waits)) .) | nindent 4 }}
{{- end }}

{{/* A probe: dict "own" the chart's, "over" the user's, whose way of asking replaces the chart's. */}}
{{- define "pomona.probe" -}}
{{- $own := dict "httpGet" (dict "path" .path "port" "admin" "scheme" "HTTP") -}}
{{- if or .over.exec .over.grpc .over.tcpSocket }}{{ $own = dict }}{{ end -}}
{{- mergeOverwrite (merge $own .own) (deepCopy .over) | toYaml -}}
{{- end }}

{{- define "pomona.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
