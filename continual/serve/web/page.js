"use strict";

const PAGE = 1000; // rows that one request reads

const byId = (id) => document.getElementById(id);
const number = (value, digits = 3) => value.toLocaleString("en", { maximumFractionDigits: digits });
const percent = (share) => `${number(100 * share, share > 0.999 || share < 0.01 ? 2 : 1)}%`;
const counted = (n, singular, plural = `${singular}s`) => `${number(n)} ${n === 1 ? singular : plural}`;
const moment = (iso) => iso.slice(0, 16).replace("T", " ");

/** Make an element with properties and children; a string is always appended as text, never parsed as HTML. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Escape control, format and separator characters, which a browser would obey, as `continual.escaping` does. */
const escaped = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) =>
  "\n\t\u200d".includes(character) ? character : `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`);

const name = (text) => make("bdi", {}, escaped(text));

/** Fetch JSON from an operation. Throws an error whose message can be shown. */
async function fetchJson(path, { body, signal } = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    const options = body && { method: "POST", body: JSON.stringify(body) };
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The server cannot be reached. It may be closing or starting; try again in a moment.");
  }
  const payload = await response.json().catch(() => null);
  if (response.ok && payload) return payload;
  if (response.status === 401) requestKey(key);
  throw new Error(escaped(payload?.error?.message ?? `The server answered with status ${response.status}.`));
}

/** Fetch all rows of a listing, page after page. `id`: the column that names a row; `onProgress`: gets their number. */
async function fetchAllRows(path, id, { query = {}, onProgress = () => {} } = {}) {
  const rows = [];
  for (;;) {
    const after = rows.length ? { after: rows.at(-1)[id] } : {};
    const page = await fetchJson(`${path}?${new URLSearchParams({ ...query, limit: PAGE, ...after })}`);
    rows.push(...page);
    if (page.length < PAGE) return rows;
    onProgress(rows.length);
  }
}

// Keys

function requestKey(rejectedKey) {
  const why = rejectedKey ? "The server knows no such key." : "The server asks for a key.";
  if (byId("keys").hidden) byId("why").textContent = why; // set once: an alert is announced whenever its text changes
  byId("keys").hidden = false;
  if (document.activeElement === document.body) byId("key").focus();
}

byId("keys").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value);
  byId("key").value = "";
  byId("keys").hidden = true;
  await pollLoad();
  byId(byId("keys").hidden ? "text" : "key").focus();
});
