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
{{- end }}

{{/* The port for probes has connections of its own, and no TLS. */}}
{{- define "pomona.probe" -}}
httpGet: {path: {{ .path }}, port: admin, scheme: HTTP}
{{- end }}
