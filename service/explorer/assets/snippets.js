// Writes the current request as a program in each language.
import { jsonOf } from "./state.js";

const indented = (text, spaces) => text.replace(/\n/g, `\n${" ".repeat(spaces)}`);
const inShell = (text) => `'${text.replace(/'/g, "'\\''")}'`;

function curl({ url, body, hasKey }) {
  const key = hasKey ? '  -H "Authorization: Bearer $LOSS_API_KEY" \\\n' : "";
  return `curl ${inShell(url)} \\\n${key}  -H 'Content-Type: application/json' \\\n  -d ${inShell(indented(body, 6))}`;
}

function python({ url, body, hasKey }) {
  const key = hasKey ? ', "Authorization": "Bearer " + os.environ["LOSS_API_KEY"]' : "";
  return `import json
${hasKey ? "import os\n" : ""}import urllib.request

body = ${indented(body, 7)}
headers = {"Content-Type": "application/json"${key}}
request = urllib.request.Request(${JSON.stringify(url)}, json.dumps(body).encode(), headers)
answer = json.load(urllib.request.urlopen(request))
print(answer["loss"])
print(answer["grad_logits"])`;
}

function javascript({ url, body, hasKey }) {
  const key = hasKey ? ", Authorization: `Bearer ${process.env.LOSS_API_KEY}`" : "";
  return `// A module, for a browser or Node 18 and later.
const body = ${indented(body, 13)};
const response = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  headers: { "Content-Type": "application/json"${key} },
  body: JSON.stringify(body),
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.detail);
console.log(answer.loss);
console.log(answer.grad_logits);`;
}

function go({ url, body, hasKey }) {
  const key = hasKey ? '\n\trequest.Header.Set("Authorization", "Bearer "+os.Getenv("LOSS_API_KEY"))' : "";
  return `package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
${hasKey ? '\t"os"\n' : ""}	"strings"
)

const body = \`${indented(body, 14)}\`

func main() {
	request, err := http.NewRequest("POST", ${JSON.stringify(url)}, strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")${key}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer))
}`;
}

function java({ url, body, hasKey }) {
  const key = hasKey ? '\n            .header("Authorization", "Bearer " + System.getenv("LOSS_API_KEY"))' : "";
  return `// Java 15 and later: java CrossEntropy.java
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class CrossEntropy {
    public static void main(String[] arguments) throws Exception {
        var body = """
            ${indented(body, 12)}
            """;
        var request = HttpRequest.newBuilder(URI.create(${JSON.stringify(url)}))
            .header("Content-Type", "application/json")${key}
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        var response = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.body());
    }
}`;
}

export const LANGUAGES = { curl, Python: python, JavaScript: javascript, Go: go, Java: java };

/** Return the program that posts a body; where keys are needed, it takes one from LOSS_API_KEY. */
export const snippet = (language, url, body, hasKey) => LANGUAGES[language]({ url, body: jsonOf(body), hasKey });
