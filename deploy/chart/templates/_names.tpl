{{/* Names and labels. Of a role: dict "root" $ "role" "both". */}}

{{- define "pomona.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* At most 46 characters: Kubernetes cuts the names of pods whose Deployment has a longer one, and KEDA's query asks for them. */}}
{{- define "pomona.roleName" -}}
{{- $base := include "pomona.name" .root -}}
{{- $room := sub 45 (len .role) | int -}}
{{- if gt (len $base) $room -}}
{{- $base = printf "%s-%s" (trunc (sub $room 6 | int) $base | trimSuffix "-") (sha256sum $base | trunc 5) -}}
{{- end -}}
{{ $base }}-{{ .role }}
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

{{/* All labels that pods have: one that changes with the chart would restart them all. */}}
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

{{- define "pomona.serviceAccountName" -}}
{{- $account := .Values.serviceAccount -}}
{{ $account.name | default (ternary (include "pomona.name" .) "default" $account.create) }}
{{- end }}
