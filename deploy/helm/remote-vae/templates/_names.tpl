{{- define "remote-vae.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "remote-vae.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "remote-vae.check" -}}
{{- if and (not .Values.keysSecret) (not .Values.allowAnonymous) }}
{{- fail "give keysSecret, the name of a Secret with the entry `keys`, or say allowAnonymous: true" }}
{{- end }}
{{- if not (contains "/" .Values.image.repository) }}
{{- fail "give image.repository, the image that you have built, with its registry, as in registry.example.org/remote-vae" }}
{{- end }}
{{- if and .Values.offline (not .Values.cacheClaim) }}
{{- fail "offline: true needs cacheClaim, where the weights are" }}
{{- end }}
{{- end }}

{{- define "remote-vae.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "remote-vae.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "remote-vae.env" -}}
{{- range $name, $value := omit .Values.settings "cors_origins" }}
- name: REMOTE_VAE_{{ $name | upper }}
  value: {{ $value | quote }}
{{- end }}
{{- $origins := .Values.settings.cors_origins | default "" }}
{{- if not .Values.keysSecret }}
{{- /* Without keys the server answers to the names that it knows, and the service has three. */}}
{{- $service := printf "%s.%s" .Release.Name .Release.Namespace }}
{{- $origins = printf "http://%s http://%s.svc %s" $service $service $origins | trim }}
{{- end }}
{{- with $origins }}
- name: REMOTE_VAE_CORS_ORIGINS
  value: {{ . | quote }}
{{- end }}
- name: REMOTE_VAE_SHUTDOWN_SECONDS
  value: {{ .Values.stopSeconds | quote }}
{{- if .Values.keysSecret }}
- name: REMOTE_VAE_KEYS_FILE
  value: /run/secrets/remote-vae/keys
{{- else }}
- name: REMOTE_VAE_ALLOW_ANONYMOUS
  value: "true"
{{- end }}
- name: HF_HUB_OFFLINE
  value: {{ ternary "1" "0" .Values.offline | quote }}
- name: TRITON_CACHE_DIR
  value: /tmp/triton  # /cache may be read-only
{{- end }}

{{- define "remote-vae.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: cache, mountPath: /cache}
{{- if .Values.keysSecret }}
- {name: keys, mountPath: /run/secrets/remote-vae, readOnly: true}
{{- end }}
{{- end }}

{{- define "remote-vae.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.shmSize }}}
- name: cache
{{- if .Values.cacheClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.cacheClaim }}, readOnly: {{ .Values.offline }}}
{{- else }}
  emptyDir: {sizeLimit: 64Gi}
{{- end }}
{{- if .Values.keysSecret }}
- name: keys
  secret: {secretName: {{ .Values.keysSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "remote-vae.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
