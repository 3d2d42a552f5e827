// Lines to copy that use a sandbox, or the server, from elsewhere. Pure. The token is left to the environment.

export interface Snippet {
  id: string;
  label: string;
  text: string;
}

/** The two variables that the SDK and the lines below read. */
export function environmentOf(baseUrl: string, token: string): string {
  return `export MIOSA_BASE_URL=${baseUrl}\nexport MIOSA_API_KEY=${token}`;
}

/** How to use one sandbox. */
export function sandboxSnippets(baseUrl: string, id: string): Snippet[] {
  return [
    {
      id: "python",
      label: "Python",
      text: `from miosa import Miosa\n\nclient = Miosa()  # reads MIOSA_BASE_URL and MIOSA_API_KEY\nsandbox = client.sandboxes.get("${id}")\nprint(sandbox.exec("uname -a").stdout)`,
    },
    {
      id: "curl",
      label: "curl",
      text: `curl -s ${baseUrl}/sandboxes/${id}/exec \\\n  -H "Authorization: Bearer $MIOSA_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '{"command": "uname -a"}'`,
    },
    { id: "cli", label: "CLI", text: `cove exec ${id} -- uname -a\ncove shell ${id}` },
  ];
}

/** How to begin from nothing. */
export function serverSnippets(baseUrl: string): Snippet[] {
  return [
    {
      id: "python",
      label: "Python",
      text: `# pip install miosa\nfrom miosa import Miosa\n\nclient = Miosa()  # reads MIOSA_BASE_URL and MIOSA_API_KEY\nsandbox = client.sandboxes.create()\nprint(sandbox.exec("python3 -c 'print(1 + 1)'").stdout)\nsandbox.destroy()`,
    },
    {
      id: "curl",
      label: "curl",
      text: `curl -s ${baseUrl}/sandboxes/run \\\n  -H "Authorization: Bearer $MIOSA_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '{"command": "uname -a"}'`,
    },
    { id: "cli", label: "CLI", text: `cove run -- python3 -c 'print(1 + 1)'\ncove ls` },
  ];
}
