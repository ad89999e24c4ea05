// Uses the explorer as a reader would, and prints what it showed as JSON.
// usage: node explore.mjs ADDRESS ADDRESS_WITH_KEYS KEY CHROMIUM FOLDER_FOR_SCREENSHOTS
import { createServer, request as forward } from "node:http";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { openWatched } from "./watching.mjs";

const [address, closedAddress, key, executablePath, folder] = process.argv.slice(2);
const QUIET_MS = 250;
const LANGUAGES = ["curl", "Python", "JavaScript", "Go", "Java"];

const seen = {
  complaints: [], foreign: [], overflowing: [], unfocused: [], shown: [], problems: [], margins: [], snippets: {},
};

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const open = (look) => openWatched(browser, `${address}/explore`, seen, look);

/** Wait until what is shown is of what was changed last, and bars have come to rest. */
async function settle(page) {
  await page.locator("#floor:not([aria-busy=true])").waitFor();
  await page.waitForTimeout(QUIET_MS);
}

/** Return what the page shows, and the request that it says it is of. */
const look = (page) =>
  page.evaluate(() => {
    const exact = (element) => element?.dataset.value;
    const all = (selector) => [...document.querySelectorAll(selector)];
    const parts = (selector) =>
      all(`#classes ${selector}`).map((part) => {
        if (part.hidden) return null;
        const [inner, outer] = [part.getBoundingClientRect(), part.parentElement.getBoundingClientRect()];
        return { from: (inner.left - outer.left) / outer.width, size: inner.width / outer.width, left: part.classList.contains("leftwards") };
      });
    return {
      snippet: document.getElementById("snippet").textContent,
      selected: all("#table [name=row]").findIndex((row) => row.checked),
      loss: exact(document.getElementById("loss")),
      spoken: document.getElementById("spoken").textContent,
      probs: all("#classes .q").map(exact),
      gradient: all("#classes .g").map(exact),
      rowLosses: all("#table .row-loss output").map(exact),
      facts: Object.fromEntries(all("#facts dd").map((fact) => [fact.dataset.fact, exact(fact)])),
      bars: parts(".fill"),
      ticks: parts(".tick"),
      arrows: parts(".bar-q .arrow"),
      pushes: parts(".push"),
    };
  });

async function note(page, name) {
  await settle(page);
  seen.shown.push({ name, ...(await look(page)) });
}

const preset = (page, name) => page.getByRole("button", { name, exact: true }).click();

async function enter(page, label, text) {
  const field = page.getByLabel(label, { exact: true });
  await field.fill(text);
}

async function walkPresets() {
  const page = await open();
  await note(page, "at first");
  for (const name of await page.locator("#presets button").allInnerTexts()) {
    await preset(page, name);
    await note(page, name);
  }
  await page.waitForTimeout(1000);
  seen.spokenAtRest = await page.locator("#spoken").textContent();
  await page.close();
}

async function useTheKeyboard() {
  const page = await open();
  const slider = page.getByLabel("Logit of class 1", { exact: true });
  await slider.focus();
  for (let step = 0; step < 7; step += 1) await page.keyboard.press("ArrowRight");
  await note(page, "slider: arrow keys");
  seen.sliderStays = await slider.evaluate((element) => element === document.activeElement);
  await page.keyboard.press("End");
  await note(page, "slider: end");
  await page.getByLabel("Logit of class 2 as a number", { exact: true }).focus();
  await page.keyboard.press("Shift+ArrowUp");
  await page.keyboard.press("ArrowDown");
  await note(page, "number: arrow keys");
  await page.locator("#classes [type=radio]").first().focus();
  await page.keyboard.press("ArrowDown");
  await note(page, "target: arrow key");
  await page.getByLabel("Mask class 0", { exact: true }).focus();
  await page.keyboard.press("Space");
  await note(page, "masked");
  await page.keyboard.press("Space");
  await note(page, "unmasked");
  await page.close();
}

async function dragTheSlider() {
  const page = await open();
  const box = await page.getByLabel("Logit of class 2", { exact: true }).boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.down();
  for (let part = 0.5; part < 0.9; part += 0.02) await page.mouse.move(box.x + box.width * part, box.y + box.height / 2);
  await page.mouse.up();
  await note(page, "dragged");
  await page.close();
}

async function editTheBatch() {
  const page = await open();
  await enter(page, "Logit of row 0, class 0", "2.5e0");
  await page.locator("#add-row").click();
  await page.locator("#add-class").click();
  await enter(page, "Logit of row 1, class 3", "-1.25");
  await page.getByLabel("Target of row 1").selectOption("3");
  await note(page, "a second row and a fourth class");
  await page.getByLabel("Show row 0").check();
  await note(page, "the first of two rows");
  await page.getByLabel("Target of row 1").selectOption("-100");
  await note(page, "a row skipped");
  await page.getByLabel("Show row 1").check();
  await note(page, "the skipped row");
  await page.locator("[name=kind][value=probs]").check();
  await enter(page, "Target probability of row 0, class 1", "0.5");
  await enter(page, "Target probability of class 2", "0.25");
  await note(page, "soft targets that do not sum to 1");
  await page.locator("#remove-row").click();
  await page.locator("#remove-class").click();
  await note(page, "without the row and the class");
  await page.close();
}

async function useTheOptions() {
  const page = await open();
  await preset(page, "Three rows");
  await enter(page, "Label smoothing as a number", "0.2");
  await note(page, "label smoothing");
  await enter(page, "Temperature as a number", "2.5");
  await note(page, "temperature");
  await page.getByText("Class weights", { exact: true }).click();
  await enter(page, "Weight of class 0", "0.5");
  await enter(page, "Weight of class 2", "3");
  await note(page, "class weights");
  await page.getByLabel("Reduction").selectOption("sum");
  await note(page, "sum");
  await page.getByLabel("Reduction").selectOption("none");
  await page.getByLabel("Show row 2").check();
  await note(page, "none");
  await page.getByLabel("Reduction").selectOption("mean");
  await enter(page, "Ignore index", "1");
  await note(page, "ignored");
  await page.close();
}

async function stepDownhill() {
  const page = await open();
  await preset(page, "Three rows");
  await note(page, "before the steps");
  for (let step = 0; step < 3; step += 1) {
    await page.locator("#step").click();
    await settle(page);
  }
  await note(page, "after three steps");
  await page.close();
}

/** Note which control a problem marks and what stands beside it. */
async function noteProblem(page, name, control) {
  await settle(page);
  const field = page.getByLabel(control, { exact: true }).first();
  const [isMarked, slot] = await field.evaluate((element) => [
    element.getAttribute("aria-invalid"),
    element.getAttribute("aria-errormessage"),
  ]);
  const message = slot && (await page.locator(`#${slot}`).innerText());
  const mend = slot && (await page.locator(`#${slot} a`).evaluate((link) => link.href));
  seen.problems.push({ name, isMarked, message, mend, loss: await page.locator("#loss").innerText() });
}

async function makeMistakes() {
  // A refused request is an error in the console of every browser.
  const own = { complaints: [], foreign: [] };
  const page = await openWatched(browser, `${address}/explore`, own);
  await enter(page, "Temperature as a number", "0");
  await noteProblem(page, "temperature", "Temperature as a number");
  await page.screenshot({ path: join(folder, "explore-problem.png"), fullPage: true });
  await enter(page, "Temperature as a number", "1");
  await noteProblem(page, "mended", "Temperature as a number");
  await enter(page, "Logit of row 0, class 1", "1e39");
  await noteProblem(page, "logit", "Logit of class 1 as a number");
  await enter(page, "Logit of row 0, class 1", "7");
  await enter(page, "Ignore index", "0");
  await settle(page);
  seen.nothingToAverage = await page.locator("#message").innerText();
  await enter(page, "Ignore index", "-100");
  await enter(page, "Logit of row 0, class 1", "two");
  await settle(page);
  seen.unread = await page.getByLabel("Logit of row 0, class 1").evaluate((field) => field.validationMessage);
  await enter(page, "Logit of row 0, class 1", "-inf");
  await note(page, "a typed infinity");
  seen.foreign.push(...own.foreign);
  seen.complaints.push(...own.complaints.filter((text) => !/status of 422/.test(text)));
  await page.close();
}

async function driveTheMargin() {
  const page = await open();
  for (const margin of [1, 10, 50, 80, 88, 89, 95, 103, 104.5, 110]) {
    await enter(page, "Margin as a number", String(margin));
    const cells = await page.locator("#routes td[data-route]").evaluateAll((all) =>
      all.map((cell) => [`${cell.dataset.route} ${cell.dataset.name}`, cell.dataset.value]),
    );
    seen.margins.push({ margin, ...Object.fromEntries(cells), verdict: await page.locator("#verdict").innerText() });
  }
  seen.marginTexts = await page.locator("#routes").innerText();
  await page.locator("#margin").focus();
  await page.keyboard.press("Home");
  seen.marginByKeyboard = await page.getByLabel("Margin as a number").inputValue();
  await enter(page, "Margin as a number", "110");
  await page.locator("#ask-margin").click();
  await note(page, "margin 110, asked of the service");
  await page.close();
}

async function copySnippets() {
  const page = await open();
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await preset(page, "A masked class");
  await page.locator("#add-row").click();
  await enter(page, "Label smoothing as a number", "0.125");
  await enter(page, "Logit of row 0, class 1", "-4");
  await page.getByLabel("Mask class 3", { exact: true }).click();
  await enter(page, "Label smoothing as a number", "0");
  await note(page, "copied");
  for (const language of LANGUAGES) {
    await page.getByLabel(language, { exact: true }).check();
    await page.locator("#copy").click();
    await page.getByText("Copied", { exact: true }).waitFor();
    seen.snippets[language] = await page.evaluate(() => navigator.clipboard.readText());
  }
  await page.close();
}

async function giveAKey() {
  const own = { complaints: [], foreign: [] };
  const page = await openWatched(browser, `${closedAddress}/explore`, own);
  await settle(page);
  const before = { complaints: [...own.complaints], loss: await page.locator("#loss").innerText() };
  await page.locator("#key-text").fill("not the key at all");
  await page.keyboard.press("Enter");
  await settle(page);
  const refused = await page.locator("#key-message").innerText();
  await page.locator("#key-text").fill(key);
  await page.getByRole("button", { name: "Use it" }).click();
  await settle(page);
  const snippets = {};
  for (const language of LANGUAGES) {
    await page.getByLabel(language, { exact: true }).check();
    snippets[language] = await page.locator("#snippet").textContent();
  }
  seen.key = {
    before,
    refused,
    loss: await page.locator("#loss").getAttribute("data-value"),
    isHidden: await page.locator("#key").isHidden(),
    kept: await page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length),
    address: page.url(),
    snippets,
  };
  seen.foreign.push(...own.foreign);
  seen.complaints.push(...own.complaints.filter((text) => !/status of 401/.test(text)));
  await page.close();
}

/** Keep the first answer back until newer ones are shown. */
async function overtake() {
  const page = await open();
  const released = [];
  let isFirst = true;
  await page.route("**/v1/cross-entropy/gradient", async (route) => {
    if (!isFirst) return route.continue();
    isFirst = false;
    await new Promise((resolve) => released.push(resolve));
    return route.continue().catch(() => {});
  });
  const cancelled = page.waitForEvent("requestfailed");
  await enter(page, "Logit of class 0 as a number", "5");
  await page.waitForTimeout(300);
  await enter(page, "Logit of class 0 as a number", "-5");
  seen.cancelled = (await cancelled).failure().errorText;
  released.forEach((release) => release());
  await note(page, "overtaken");
  await page.close();
}

/** Serve the service below /loss, as a proxy does that strips a prefix. */
async function behindAProxy() {
  const target = new URL(address);
  const proxy = createServer((incoming, outgoing) => {
    const options = { host: target.hostname, port: target.port, method: incoming.method, headers: incoming.headers };
    if (!incoming.url.startsWith("/loss/")) return outgoing.writeHead(404).end();
    const passed = forward({ ...options, path: incoming.url.slice("/loss".length) }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    return incoming.pipe(passed);
  });
  await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const outside = `http://127.0.0.1:${proxy.address().port}/loss`;
  const page = await openWatched(browser, `${outside}/explore`, seen);
  await settle(page);
  seen.proxied = { outside, ...(await look(page)), links: await page.locator("nav a").evaluateAll((links) => links.map((a) => a.href)) };
  await page.close();
  proxy.close();
}

async function tryWidths() {
  const page = await open();
  for (const name of ["A teacher's opinion", "Three rows"]) {
    await preset(page, name);
    for (const width of [320, 360, 600, 740, 900, 1120, 1600]) {
      await page.setViewportSize({ width, height: 900 });
      await settle(page);
      if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)) seen.overflowing.push(`${name} at ${width}`);
    }
  }
  await page.close();
}

async function takeScreenshots() {
  for (const width of [1280, 390]) {
    for (const colorScheme of ["light", "dark"]) {
      for (const name of ["A teacher's opinion", "Three rows"]) {
        const page = await open({ width, colorScheme });
        await preset(page, name);
        await settle(page);
        const shot = `explore-${width}-${colorScheme}-${name.replace(/\W+/g, "-").toLowerCase()}`;
        if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)) seen.overflowing.push(shot);
        await page.screenshot({ path: join(folder, `${shot}.png`), fullPage: true });
        await page.close();
      }
    }
  }
}

async function walkByKeyboard() {
  const page = await open();
  const stops = [];
  for (let step = 0; step < 120; step += 1) {
    await page.keyboard.press("Tab");
    const stop = await page.evaluate(() => {
      const active = document.activeElement;
      if (active === document.body) return null;
      const style = getComputedStyle(active);
      const isVisible = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
      const text = active.labels?.[0]?.innerText || active.getAttribute("aria-label") || active.innerText;
      return { isVisible, text: text.trim() };
    });
    if (stop === null) break;
    stops.push(stop.text);
    if (!stop.isVisible || !stop.text) seen.unfocused.push(`step ${step}: ${JSON.stringify(stop)}`);
  }
  seen.stops = stops;
  await page.close();
}

async function readMotion(reducedMotion) {
  const page = await open({ reducedMotion });
  const duration = await page.locator("#classes .fill").first().evaluate((bar) => getComputedStyle(bar).transitionDuration);
  await page.close();
  return duration;
}

await walkPresets();
await useTheKeyboard();
await dragTheSlider();
await editTheBatch();
await useTheOptions();
await stepDownhill();
await makeMistakes();
await driveTheMargin();
await copySnippets();
await giveAKey();
await overtake();
await behindAProxy();
await tryWidths();
await takeScreenshots();
await walkByKeyboard();
seen.motion = { reduce: await readMotion("reduce"), free: await readMotion("no-preference") };
await browser.close();
console.log(JSON.stringify(seen));
