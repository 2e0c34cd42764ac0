const LIKELY = 0.01; // probability of the tasks that are named beside the one that answered

let asking = new AbortController();

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  asking.abort(); // of two questions the later one is answered
  const { signal } = (asking = new AbortController());
  const [text, second, task] = ["text", "second", "task"].map((id) => byId(id).value);
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const row = { text: second ? [text, second] : text, task: task || null };
    const { predictions } = await asked("/v1/predict", { body: { rows: [row], at_least: LIKELY }, signal });
    byId("answer").replaceChildren(...said(predictions[0]));
  } catch (error) {
    if (!signal.aborted) byId("answer").replaceChildren(make("p", { className: "wrong" }, error.message));
  }
  if (!signal.aborted) byId("answer").removeAttribute("aria-busy");
});

for (const id of ["text", "second"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("ask").requestSubmit();
  });
}

const shown = (label) => name(typeof label === "number" ? number(label, 4) : label);

function said({ task, label, score, routed, confidence, abstained, delta, possible, error }) {
  if (abstained) {
    const why = `No answer: the text is like those of none of the tasks.${possible.length ? " The nearest are:" : ""}`;
    return [make("p", {}, why), nearest(possible)];
  }
  const sure = routed ? ` chosen by the router with ${percent(confidence)}` : " as you chose";
  const by = make("p", {}, "by ", name(task), `,${sure}; delta `, name(delta));
  if (error) return [make("p", { className: "wrong" }, visible(error)), by];
  const likely = score === null ? "" : make("span", { className: "note" }, ` with probability ${percent(score)}`);
  const answer = make("p", { className: "label" }, shown(label), likely);
  const others = possible.filter((own) => own.task !== task);
  if (!others.length) return [answer, by];
  return [answer, by, make("p", { className: "note" }, "It may also belong to:"), nearest(others)];
}

function nearest(possible) {
  const items = possible.map(({ task, confidence, label }) => {
    const answer = label === null ? [] : [": ", shown(label)];
    const item = make("li", {}, make("span", {}, name(task), ...answer), make("span", {}, percent(confidence)));
    item.style.setProperty("--share", confidence);
    return item;
  });
  return make("ul", { className: "nearest" }, ...items);
}
