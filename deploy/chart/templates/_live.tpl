{{/* What is on the cluster now, as JSON: dict "root" $ "apiVersion" "kind" "name". {} where there is no such object, and where
     there is no cluster to ask: helm template, GitOps. */}}
{{- define "pomona.live" -}}
{{ lookup .apiVersion .kind .root.Release.Namespace .name | default dict | toJson }}
{{- end }}
