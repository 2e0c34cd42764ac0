"use strict";

const PAGE = 1000; // rows that one request reads

const byId = (id) => document.getElementById(id);
const number = (value, digits = 3) => value.toLocaleString("en", { maximumFractionDigits: digits });
const percent = (share) => `${number(100 * share, share > 0.999 || share < 0.01 ? 2 : 1)}%`;
const counted = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
const moment = (iso) => iso.slice(0, 16).replace("T", " ");

/** An element with its properties and children; a text is only ever a text. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A text with every sign that a browser would obey written as its escape, as `continual.visible` does. */
const visible = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (sign) =>
  "\n\t\u200d".includes(sign) ? sign : `\\u${sign.codePointAt(0).toString(16).padStart(4, "0")}`);

const name = (text) => make("bdi", {}, visible(text));

/** What an operation answers. Throws an error that says in words why there is no answer. */
async function asked(path, { body, signal } = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    const told = body && { method: "POST", body: JSON.stringify(body) };
    response = await fetch(path, { ...told, headers, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The server cannot be reached. It may be closing or starting; try again in a moment.");
  }
  const told = await response.json().catch(() => null);
  if (response.ok && told) return told;
  if (response.status === 401) needKey(key);
  throw new Error(visible(told?.error?.message ?? `The server answered with status ${response.status}.`));
}

/** All rows of a listing, page after page; the column `id` names a row. */
async function everything(path, id, { which = {}, tell = () => {} } = {}) {
  const rows = [];
  for (;;) {
    const after = rows.length ? { after: rows.at(-1)[id] } : {};
    const page = await asked(`${path}?${new URLSearchParams({ ...which, limit: PAGE, ...after })}`);
    rows.push(...page);
    if (page.length < PAGE) return rows;
    tell(rows.length);
  }
}

// Keys

function needKey(before) {
  const why = before ? "The server knows no such key." : "The server asks for a key.";
  if (byId("keys").hidden) byId("why").textContent = why; // said once
  byId("keys").hidden = false;
  if (document.activeElement === document.body) byId("key").focus();
}

byId("keys").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value);
  byId("key").value = "";
  byId("keys").hidden = true;
  await look();
  byId(byId("keys").hidden ? "text" : "key").focus();
});
