// The code that asks what the page asks. The key stays out of it.

const KEY = "LIVERY_API_KEY";

/** One word to a shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(url, body) {
  return [
    `curl ${quoted(url)} \\`,
    `  -H "Authorization: Bearer $${KEY}" \\`,
    "  -H 'Content-Type: application/json' \\",
    `  -d ${quoted(JSON.stringify(body))}`,
  ].join("\n");
}

export function python(url, body, chat) {
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},`);
  const ask = chat ? "chat.completions" : "completions";
  const shown = chat ? "choices[0].message.content" : "choices[0].text";
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(url)}, api_key=os.environ.get("${KEY}", "none"))`,
    `answer = client.${ask}.create(`,
    ...fields,
    ")",
    `print(answer.${shown})`,
  ].join("\n");
}

/** JSON's text, numbers, lists and objects are Python's as well, but for half characters, which no field here holds. */
const literal = (value) => JSON.stringify(value);
