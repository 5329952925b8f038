{{/* Roles: what the release sets, with what a role sets merged over it. */}}

{{/* The names of all enabled roles as a JSON list; there must be one. */}}
{{- define "pomona.roles" -}}
{{- $names := list -}}
{{- range $role, $of := .Values.roles -}}
{{- if has $role (list "test" "prepare") }}{{ fail (printf "roles.%s: the chart has pods of its own of this name; choose another." $role) }}{{ end -}}
{{- if dig "enabled" true $of }}{{ $names = append $names $role }}{{ end -}}
{{- end -}}
{{- if not $names }}{{ fail "roles: enable at least one, such as roles.both.enabled=true." }}{{ end -}}
{{ toJson $names }}
{{- end }}

{{/* One role's values as JSON: dict "root" $ "role" "both". `image` becomes the image's name, beside it
     are `pullPolicy` and `pullSecrets`, `preparing` the resources of
     steps before the server, `cached` whether there is a folder for fetched and converted models. */}}
{{- define "pomona.role" -}}
{{- $values := .root.Values -}}
{{- $of := deepCopy (index $values.roles .role) -}}
{{- $all := dict "replicas" 2 "minReplicas" 2 "maxReplicas" 8 "routes" (dict "paths" (list "/") "grpcMethods" list) -}}
{{- range list "image" "gpu" "settings" "configMaps" "secrets" "weights" "strategy" "nodeSelector" "tolerations" "affinity" "priorityClassName" "podLabels" "podAnnotations" "extraEnv" -}}
{{- $_ := set $all . (index $values . | deepCopy) -}}
{{- end -}}
{{- $gpu := dig "gpu" "enabled" $values.gpu.enabled $of -}}
{{- $_ := set $all "resources" (ternary $values.gpu.resources $values.resources $gpu | deepCopy) -}}
{{- $role := mergeOverwrite $all $of -}}
{{- if not $role.models }}{{ fail (printf "roles.%s.models: name at least one model." .role) }}{{ end -}}
{{- if lt (int $role.maxReplicas) (int $role.minReplicas) }}{{ fail (printf "roles.%s: maxReplicas must be at least minReplicas." .role) }}{{ end -}}
{{- include "pomona.checkWeights" (dict "role" .role "of" $role) -}}
{{- if $gpu -}}
{{- $device := dict $role.gpu.resource 1 -}}
{{- $_ := set $role "preparing" (deepCopy $role.resources) -}}
{{- $_ := set $role.resources "requests" (merge dict $device ($role.resources.requests | default dict)) -}}
{{- $_ := set $role.resources "limits" (merge dict $device ($role.resources.limits | default dict)) -}}
{{- $_ := set $role "nodeSelector" (merge dict $role.nodeSelector $role.gpu.nodeSelector) -}}
{{- $_ := set $role "tolerations" (concat $role.tolerations $role.gpu.tolerations) -}}
{{- else -}}
{{- $_ := set $role "preparing" $role.resources -}}
{{- end -}}
{{- $_ := set $role "cached" (or (has $role.weights.source (list "init" "job")) (ne $role.weights.cacheClaim "")) -}}
{{- $_ := set $role "pullPolicy" $role.image.pullPolicy -}}
{{- $_ := set $role "pullSecrets" $role.image.pullSecrets -}}
{{- $_ := set $role "image" (include "pomona.image" (dict "image" $role.image "version" .root.Chart.AppVersion "gpu" $gpu)) -}}
{{- toJson $role -}}
{{- end }}

{{- define "pomona.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default (printf "%s-%s" .version (ternary "gpu" "cpu" .gpu)) }}
{{- end }}
{{- end }}

{{/* Values that the schema accepts and no pod could start with. */}}
{{- define "pomona.checkWeights" -}}
{{- $weights := .of.weights -}}
{{- $gpu := .of.gpu.enabled -}}
{{- if eq $weights.source "image" -}}
{{- if or $weights.claim $weights.cacheClaim }}{{ fail (printf "roles.%s: weights.claim and weights.cacheClaim are not used with weights.source image: use volume, init or job." .role) }}{{ end -}}
{{- else if eq $weights.source "volume" -}}
{{- if and (not $gpu) (not $weights.cacheClaim) }}{{ fail (printf "roles.%s: the cpu image cannot convert checkpoints. With weights.source volume it needs weights.cacheClaim with converted models; init and job convert them." .role) }}{{ end -}}
{{- if not (or $weights.claim $weights.cacheClaim) }}{{ fail (printf "roles.%s: weights.source volume needs weights.claim with checkpoints." .role) }}{{ end -}}
{{- else -}}
{{- if and (not $gpu) (not $weights.initImage) }}{{ fail (printf "roles.%s: weights.source %s needs weights.initImage, an image with PyTorch: the cpu image cannot convert checkpoints." .role $weights.source) }}{{ end -}}
{{- if and (eq $weights.source "job") (not $weights.cacheClaim) }}{{ fail (printf "roles.%s: weights.source job needs weights.cacheClaim, which all pods share." .role) }}{{ end -}}
{{- end -}}
{{- if and $weights.fetch.image (has $weights.source (list "image" "volume")) }}{{ fail (printf "roles.%s: weights.fetch needs weights.source init or job." .role) }}{{ end -}}
{{- if and $weights.fetch.image $weights.claim }}{{ fail (printf "roles.%s: weights.fetch and weights.claim exclude each other." .role) }}{{ end -}}
{{- end }}

{{/* How many pods: dict "of" the role, "kind" of autoscaling, "live" its Deployment. */}}
{{- define "pomona.replicas" -}}
{{- if eq .kind "none" -}}
{{ int .of.replicas }}
{{- else -}}
{{ max (int .of.minReplicas) (dig "spec" "replicas" 0 .live | int) }}
{{- end }}
{{- end }}

{{- define "pomona.strategy" -}}
{{- $surge := .of.strategy.maxSurge -}}
{{- $unavailable := .of.strategy.maxUnavailable -}}
{{- if eq (toString $surge) "" }}{{ $surge = ternary 0 1 .of.gpu.enabled }}{{ end -}}
{{- if eq (toString $unavailable) "" }}{{ $unavailable = ternary 1 0 .of.gpu.enabled }}{{ end -}}
{{- if and (has (toString $surge) (list "0" "0%")) (has (toString $unavailable) (list "0" "0%")) }}{{ fail (printf "roles.%s: strategy.maxSurge and strategy.maxUnavailable must not both be 0." .role) }}{{ end -}}
maxSurge: {{ toJson $surge }}
maxUnavailable: {{ toJson $unavailable }}
{{- end }}

{{/* A hash of the ConfigMaps and Secrets that a pod reads at its start: dict "root" $ "of" the role. Empty where none is seen. */}}
{{- define "pomona.checksum" -}}
{{- $root := .root -}}
{{- $seen := dict -}}
{{- $maps := .of.configMaps -}}
{{- with .of.weights.modelsFile.configMap }}{{ $maps = append $maps . }}{{ end -}}
{{- range $maps -}}
{{- $live := include "pomona.live" (dict "root" $root "apiVersion" "v1" "kind" "ConfigMap" "name" .) | fromJson -}}
{{- if $live }}{{ $_ := set $seen (print "ConfigMap/" .) (pick $live "data" "binaryData") }}{{ end -}}
{{- end -}}
{{- range .of.secrets -}}
{{- $live := include "pomona.live" (dict "root" $root "apiVersion" "v1" "kind" "Secret" "name" .) | fromJson -}}
{{- if $live }}{{ $_ := set $seen (print "Secret/" .) (pick $live "data") }}{{ end -}}
{{- end -}}
{{- if $seen }}{{ toJson $seen | sha256sum | trunc 16 }}{{ end -}}
{{- end }}
