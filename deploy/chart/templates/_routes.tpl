{{/* What Ingress and Gateway API have in common. */}}

{{/* The paths of all roles, by path, as a JSON object of roles; a path may have one role only. */}}
{{- define "pomona.paths" -}}
{{- $paths := dict -}}
{{- range $role := include "pomona.roles" . | fromJsonArray -}}
{{- $of := include "pomona.role" (dict "root" $ "role" $role) | fromJson -}}
{{- range $of.routes.paths -}}
{{- if hasKey $paths . }}{{ fail (printf "roles %s and %s both answer %s: set their routes.paths." (get $paths .) $role .) }}{{ end -}}
{{- $_ := set $paths . $role -}}
{{- end -}}
{{- end -}}
{{ toJson $paths }}
{{- end }}

{{/* The same for methods of gRPC; "" is all others. A role without paths has no methods either. */}}
{{- define "pomona.grpcMethods" -}}
{{- $methods := dict -}}
{{- range $role := include "pomona.roles" . | fromJsonArray -}}
{{- $of := include "pomona.role" (dict "root" $ "role" $role) | fromJson -}}
{{- range (ternary ($of.routes.grpcMethods | default (list "")) list (gt (len $of.routes.paths) 0)) -}}
{{- if hasKey $methods . }}{{ fail (printf "roles %s and %s both answer the gRPC method %q: set their routes.grpcMethods." (get $methods .) $role .) }}{{ end -}}
{{- $_ := set $methods . $role -}}
{{- end -}}
{{- end -}}
{{ toJson $methods }}
{{- end }}

{{/* Where a rule sends requests: dict "root" $ "role" "port"; a share goes to the canary's role of the same name. */}}
{{- define "pomona.backends" -}}
{{- $canary := .root.Values.gateway.canary -}}
{{- $share := int $canary.weight -}}
- name: {{ include "pomona.roleName" . }}
  port: {{ .port }}
  {{- if $canary.release }}
  weight: {{ sub 100 $share }}
- name: {{ include "pomona.roleName" (dict "role" .role "root" (dict "Chart" .root.Chart "Release" (dict "Name" $canary.release))) }}
  port: {{ .port }}
  weight: {{ $share }}
  {{- end }}
{{- end }}
