// Lines to copy that use one sandbox from elsewhere. Pure. The token is left to the environment.

export interface Snippet {
  id: string;
  label: string;
  text: string;
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
