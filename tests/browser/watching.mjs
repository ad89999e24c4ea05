// Opens a page and notes what it must not do: complain, violate its policy, or ask another host.

/** Return a page at an address; complaints go to `seen.complaints`, requests to other origins to `seen.foreign`. */
export async function openWatched(browser, address, seen, { width = 1280, colorScheme = "light", ...more } = {}) {
  const { origin, pathname } = new URL(address);
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme, ...more });
  page.on("console", (message) => seen.complaints.push(`${pathname}: ${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => seen.complaints.push(`${pathname}: ${error.message}`));
  page.on("requestfailed", (request) => {
    // The explorer drops requests that have been overtaken.
    if (request.failure().errorText !== "net::ERR_ABORTED") seen.complaints.push(`${pathname}: ${request.url()} failed`);
  });
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (!["data:", "blob:"].includes(url.protocol) && url.origin !== origin) seen.foreign.push(request.url());
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
    });
  });
  await page.goto(address, { waitUntil: "networkidle" });
  return page;
}
