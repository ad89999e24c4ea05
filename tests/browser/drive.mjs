// Opens every page in Chromium, runs every example of the API documentation, and prints what it saw as JSON.
// usage: node drive.mjs ADDRESS CHROMIUM FOLDER_FOR_SCREENSHOTS
import { join } from "node:path";
import { chromium } from "playwright-core";
import { openWatched } from "./watching.mjs";

const [address, executablePath, folder] = process.argv.slice(2);
const seen = { complaints: [], foreign: [], executed: [], overflowing: [], unfocused: [], closed: [] };

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

const open = (path, look) => openWatched(browser, address + path, seen, look);

async function screenshot(path, name, options) {
  const page = await open(path, options);
  if (path === "/docs") await page.waitForSelector(".opblock");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
  if (wide) seen.overflowing.push(name);
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
  await page.close();
}

async function execute(page, block, name) {
  const answered = page.waitForResponse((response) => !response.url().endsWith("/openapi.json"));
  await block.locator("button.execute").click();
  const response = await answered;
  const shown = await block.locator(".live-responses-table tbody .response-col_status").first().innerText();
  seen.executed.push({ name, status: response.status(), shown: parseInt(shown, 10) });
}

async function runEveryExample() {
  const page = await open("/docs");
  const contract = await (await page.request.get(`${address}/openapi.json`)).json();
  for (const operation of Object.values(contract.paths).flatMap((methods) => Object.values(methods))) {
    const id = operation.operationId;
    const block = page.locator(`.opblock[id$="-${id}"]`);
    await block.locator(".opblock-summary-control").click();
    await block.locator("button.execute").waitFor();
    const names = Object.keys(operation.requestBody?.content["application/json"].examples ?? {});
    for (const name of names) {
      await block.locator(".opblock-section-request-body .examples-select-element").selectOption(name);
      await execute(page, block, `${id}: ${name}`);
    }
    if (!names.length) await execute(page, block, id);
    if (id === "crossEntropy") await block.screenshot({ path: join(folder, "docs-operation.png") });
    await block.locator(".opblock-summary-control").click();
  }
  await page.close();
}

async function walkByKeyboard() {
  const page = await open("/");
  const steps = await page.locator("a, [tabindex='0']").count();
  for (let step = 0; step < steps; step += 1) {
    await page.keyboard.press("Tab");
    const outlined = await page.evaluate(() => {
      const active = document.activeElement;
      return active !== document.body && getComputedStyle(active).outlineStyle !== "none";
    });
    if (!outlined) seen.unfocused.push(`step ${step} of the front page has no visible focus`);
  }
  await page.close();
}

async function followLinksToOperators() {
  const front = await open("/");
  const addresses = await front.locator(".cards a").evaluateAll((links) => links.map((link) => link.href));
  await front.close();
  for (const target of addresses) {
    const page = await open(target.slice(address.length));
    const opened = await page.locator(".opblock.is-open").waitFor({ timeout: 5000 }).then(() => true, () => false);
    if (!opened) seen.closed.push(target);
    await page.close();
  }
}

for (const width of [1280, 390]) {
  for (const colorScheme of ["light", "dark"]) {
    const look = { width, colorScheme };
    await screenshot("/", `front-${width}-${colorScheme}`, look);
    await screenshot("/docs", `docs-${width}-${colorScheme}`, look);
    await screenshot("/problems", `problems-${width}-${colorScheme}`, look);
    await screenshot("/problems/shape-mismatch", `problem-${width}-${colorScheme}`, look);
  }
}
await walkByKeyboard();
await followLinksToOperators();
await runEveryExample();
await browser.close();
console.log(JSON.stringify(seen));
