{{/* Names and labels. `of` a role: dict "root" $ "role" "both". */}}

{{- define "pomona.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "pomona.roleName" -}}
{{ include "pomona.name" .root }}-{{ .role }}
{{- end }}

{{- define "pomona.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pomona.labels" -}}
{{ include "pomona.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "pomona.roleSelector" -}}
{{ include "pomona.selector" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "pomona.roleLabels" -}}
{{ include "pomona.labels" .root }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "pomona.monitoringLabels" -}}
{{ include "pomona.labels" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pomona.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (printf "%s-%s" .Chart.AppVersion (ternary "gpu" "cpu" .Values.gpu.enabled)) }}
{{- end }}
{{- end }}
