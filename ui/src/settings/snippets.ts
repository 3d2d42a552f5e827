// How programs reach this server: ready to paste. `token` null leaves a placeholder, so that a screenshot tells nothing.

const PLACEHOLDER = "<token>";

/** The Python SDK, unmodified. */
export function pythonSnippet(baseUrl: string, token: string | null): string {
  return `# pip install miosa
from miosa import Miosa

client = Miosa(api_key="${token ?? PLACEHOLDER}", base_url="${baseUrl}")
sandbox = client.sandboxes.create(template_id="miosa-sandbox")
print(sandbox.exec("python3 -c 'print(1+1)'").stdout)
sandbox.destroy()`;
}

export function curlSnippet(baseUrl: string, token: string | null): string {
  return `curl -s ${baseUrl}/sandboxes/run \\
  -H 'Authorization: Bearer ${token ?? PLACEHOLDER}' \\
  -H 'Content-Type: application/json' \\
  -d '{"command": "uname -a", "size": "xs"}'`;
}

export function envSnippet(baseUrl: string, token: string | null): string {
  return `export MIOSA_BASE_URL=${baseUrl}
export MIOSA_API_KEY=${token ?? PLACEHOLDER}`;
}

export const cliSnippet = `cove ls                          # all sandboxes
cove run -- python3 -c 'print(1+1)'  # a fresh one for one command
cove exec <sandbox> -- ls /workspace
cove shell <sandbox>             # a terminal in it`;
