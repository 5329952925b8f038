{{/* Parts of a pod. */}}

{{- define "pomona.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Settings that the chart decides, then the user's: those of the ConfigMap may not name the former. */}}
{{- define "pomona.environment" -}}
{{- $values := .root.Values -}}
- {name: POMONA_HTTP_HOST, value: "0.0.0.0"}
- {name: POMONA_HTTP_PORT, value: "3000"}
- {name: POMONA_GRPC_PORT, value: "3001"}
- {name: POMONA_ADMIN_PORT, value: "3002"}
- {name: POMONA_MODELS, value: {{ join "," .of.models | quote }}}
- {name: POMONA_BACKEND, value: {{ ternary "torch" "openvino" $values.gpu.enabled }}}
- {name: POMONA_DRAIN_TIMEOUT_S, value: {{ $values.drain.timeoutSeconds | quote }}}
{{- if ne $values.weights.source "image" }}
- {name: POMONA_CACHE_DIR, value: /var/cache/pomona}
{{- end }}
{{- if $values.weights.claim }}
- {name: POMONA_WEIGHTS_DIR, value: /var/lib/pomona/weights}
{{- end }}
{{- if $values.weights.modelsFile.configMap }}
- {name: POMONA_MODELS_FILE, value: /var/lib/pomona/{{ $values.weights.modelsFile.key }}}
{{- end }}
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
- configMapRef: {name: {{ include "pomona.name" .root }}}
{{- range .root.Values.configMaps }}
- configMapRef: {name: {{ . }}}
{{- end }}
{{- range .root.Values.secrets }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "pomona.mounts" -}}
- {name: scratch, mountPath: /tmp}
- {name: bentoml, mountPath: /var/lib/bentoml}
- {name: cache, mountPath: /var/cache/pomona}
{{- if .root.Values.weights.claim }}
- {name: weights, mountPath: /var/lib/pomona/weights, readOnly: true}
{{- end }}
{{- if .root.Values.weights.modelsFile.configMap }}
- {name: models-file, mountPath: /var/lib/pomona/{{ .root.Values.weights.modelsFile.key }}, subPath: {{ .root.Values.weights.modelsFile.key }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "pomona.volumes" -}}
- {name: scratch, emptyDir: {sizeLimit: 1Gi}}
- {name: bentoml, emptyDir: {sizeLimit: 64Mi}}
- {name: cache, emptyDir: {sizeLimit: {{ .root.Values.weights.cacheSize }}}}
{{- with .root.Values.weights.claim }}
- {name: weights, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
{{- end }}
{{- with .root.Values.weights.modelsFile.configMap }}
- {name: models-file, configMap: {name: {{ . }}}}
{{- end }}
{{- with .root.Values.tls.secretName }}
- {name: tls, secret: {secretName: {{ . }}, defaultMode: 288}}   # 0440
{{- end }}
{{- with .root.Values.access.clientCaSecret }}
- {name: client-ca, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- with .root.Values.access.keysSecret }}
- {name: keys, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- end }}

{{/* The port for probes has connections of its own, and no TLS. */}}
{{- define "pomona.probe" -}}
httpGet: {path: {{ .path }}, port: admin, scheme: HTTP}
{{- end }}
