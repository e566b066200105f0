// The search page: one module, no framework, no build step.
// Captions, names, ids and messages come from strangers' data: they get here as text nodes, nothing parses HTML.
// The whole search is one value, `state`, replaced and never changed, so that back and forward can keep it. A term is
// {kind: "text" | "item" | "vector" | "file", value: words, id, packed vector, File, about: modality or label, weight}.

const K = 24; // hits to begin with; "Show more" doubles it
const PAUSE = 300; // ms without a key, after which what was typed is searched
const PATIENCE = 30; // seconds in which a busy server, or one that still loads its index, is asked again
const RECORD_SECONDS = 60;
const COLUMNS_SHOWN = 4;

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const count = (number) => number.toLocaleString("en");
const brief = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

const fresh = () => ({ terms: [], where: [], among: "", k: K });
let state = fresh();
let index = null; // what GET /v1/index said
let shown = []; // the hits on the page
let running = new AbortController(); // the search under way: a newer one aborts it, so no stale answer is drawn
let timer = 0; // of what is typed

// ---- small tools

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const button = (className, label, onclick, more = {}) =>
  make("button", { type: "button", className, onclick, ...more }, label);

class Trouble extends Error {
  constructor(message, hint = "", label = "", action = null) {
    super(message);
    Object.assign(this, { hint, label, action });
  }
}

function tell(box, { message, hint, label, action }) {
  box.replaceChildren(make("p", { className: "message", dir: "auto" }, message));
  if (hint) box.append(make("p", { className: "advice", dir: "auto" }, hint));
  if (action) box.append(button("action", label, action));
  box.hidden = false;
}

function fail(error) {
  tell(page.error, error instanceof Trouble ? error : new Trouble("That did not work.", error.message));
  page.error.scrollIntoView({ block: "nearest" });
}

/** Draw a list anew and leave the keyboard at the place where it was in it. */
function redraw(list, nodes) {
  const place = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  release(list);
  list.replaceChildren(...nodes);
  list.hidden = !nodes.length;
  if (place >= 0) ([...list.querySelectorAll("button")].slice(0, place + 1).at(-1) ?? page.words).focus();
}

// ---- the server

let token = "";
try { token = sessionStorage.getItem("fusemix-token") ?? ""; } catch { /* storage may be off */ }
function keepToken(text) {
  token = text;
  try { sessionStorage.setItem("fusemix-token", text); } catch { /* then it lasts until the page is left */ }
}

let asking = null; // several calls may be refused at once; they share one question
function askToken(refused) {
  const dialog = page["token-dialog"];
  return asking ??= new Promise((done, stop) => {
    page["token-message"].textContent = refused ? "That token was not accepted."
      : "It was shown where fusemix serve was started. Only this tab keeps it.";
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      if (!dialog.returnValue) return stop(new Trouble("This index wants a token.", "", "Enter the token", again));
      keepToken(page.token.value.trim());
      page.token.value = "";
      done();
    };
    dialog.showModal();
  });
}

const wait = (seconds, signal) => new Promise((done, stop) => {
  setTimeout(done, seconds * 1000);
  signal?.addEventListener("abort", () => stop(signal.reason));
});

const local = (path) => path.replace(/^\/+/, ""); // relative: the page also works below a proxy's prefix

async function call(path, options = {}, patience = PATIENCE) {
  const used = token;
  const headers = used ? { ...options.headers, Authorization: `Bearer ${used}` } : options.headers;
  const response = await fetch(local(path), { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer.", "Is `fusemix serve` still running?", "Try again", again);
  });
  if (response.status === 401) {
    if (used === token) await askToken(used); // else it was entered meanwhile
    return call(path, options, patience);
  }
  if (response.status === 503 && patience > 0) {
    const seconds = Math.min(Number(response.headers.get("Retry-After")) || 1, PATIENCE);
    page.status.textContent = `The server is busy; asking again in ${seconds} s.`;
    await wait(seconds, options.signal);
    return call(path, options, patience - seconds);
  }
  if (response.ok) return response;
  const { message, hint } = (await response.json().catch(() => ({}))).error ?? {};
  const retry = response.status >= 500 ? ["Try again", again] : [];
  throw new Trouble(message ?? `The server answered ${response.status}.`, hint, ...retry);
}

const json = async (path, options) => (await call(path, options)).json();
const again = () => (index ? run("push") : start());

// ---- previews: plain addresses, or blobs where a token has to travel along

const release = (list) => list.querySelectorAll("[src^='blob:']").forEach(({ src }) => URL.revokeObjectURL(src));

async function fetchPreview(node) {
  try {
    const blob = await (await call(node.dataset.preview)).blob();
    if (node.isConnected) node.src = URL.createObjectURL(blob); // else it was replaced meanwhile
  } catch {
    node.dispatchEvent(new Event("error"));
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((one) => one.isIntersecting)) {
    near.unobserve(target);
    fetchPreview(target);
  }
}, { rootMargin: "400px" });

function preview(node, url) {
  node.dataset.preview = url;
  if (token) near.observe(node);
  else node.src = local(url);
  return node;
}

const picture = (url, onerror) =>
  preview(make("img", { alt: "", loading: "lazy", decoding: "async", draggable: false, onerror }), url);

const player = (more) => make("audio", { controls: true, controlsList: "nodownload noplaybackrate", ...more });

// ---- the address holds the search: #text=red+shoe&-1*item@image=shoes/7.png&where=price+%3C+20&among=image&k=48

const phrase = ({ column, op, value }) => `${column} ${op} ${value}`;
const literal = (value) => // quotes around a value are left out by the server: here they are of it
  /^(["'])(?:(?!\1)[^])*\1$/.test(value) ? (value[0] === "'" ? `"${value}"` : `'${value}'`) : value;
const SIGNS = { "<=": "≤", ">=": "≥", "!=": "≠", "~": "contains" };
const told = ({ column, op, value }) => `${column} ${SIGNS[op] ?? op} ${value}`;
const escaped = (text) => encodeURIComponent(text).replace(/%20/g, "+").replace(/%(2F|3A|40|2C)/g, decodeURIComponent);

function address({ terms, where, among, k }) {
  const pairs = terms.map(({ kind, value, about, weight }) =>
    [`${weight === 1 ? "" : `${weight}*`}${kind}${about ? `@${about}` : ""}`, value]);
  where.forEach((one) => pairs.push(["where", phrase(one)]));
  if (among) pairs.push(["among", among]);
  if (k !== K) pairs.push(["k", k]);
  return pairs.length ? `#${pairs.map((pair) => pair.map(escaped).join("=")).join("&")}` : "";
}

const bare = () => location.pathname + location.search;

function readAddress() {
  const read = fresh();
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    const [, weight = "1", kind, about = ""] = key.match(/^(?:(-?[\d.]+)\*)?(text|item|vector)(?:@([^]*))?$/) ?? [];
    const [, column, op, bound] = value.match(/^([^]+?) (<=|>=|!=|=|<|>|~) ([^]*)$/) ?? [];
    const bounded = Math.max(-10, Math.min(10, Number(weight))) || 1;
    if (kind && value) read.terms.push({ kind, value, about, weight: bounded });
    else if (key === "where" && op) read.where.push({ column, op, value: bound });
    else if (key === "among") read.among = value;
    else if (key === "k") read.k = Math.max(1, Math.min(index.limits.k, Math.trunc(value) || K));
  }
  return read;
}

/** A token may come in the address; it stays neither there nor in the history. */
function takeToken() {
  const [whole, text] = location.hash.match(/[#&]token=([^&]*)/) ?? [];
  if (!whole) return;
  keepToken(new URLSearchParams(`t=${text}`).get("t"));
  history.replaceState(null, "", location.hash.replace(whole, "").replace(/^&/, "#") || bare());
}

/** A file cannot be in an address; the embedding of the query it was part of can, and stands for that whole query. */
function sealed(asked, embedding) {
  const label = asked.terms.map((term, i) => (term.weight < 0 ? "− " : i ? "+ " : "") + named(term)).join(" ");
  return { ...asked, terms: [{ kind: "vector", value: pack(embedding), about: label, weight: 1 }] };
}

function pack(vector) {
  const top = Math.max(...vector.map(Math.abs)) || 1;
  const whole = Int16Array.from(vector, (x) => Math.round((x / top) * 32767)); // 8 bits would change the order of hits
  const code = btoa(String.fromCharCode(...new Uint8Array(whole.buffer)));
  return code.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

function unpack(code) {
  try {
    const bytes = Uint8Array.from(atob(code.replace(/-/g, "+").replace(/_/g, "/")), (letter) => letter.charCodeAt(0));
    const whole = new Int16Array(bytes.buffer);
    const norm = Math.hypot(...whole) || 1;
    return Array.from(whole, (number) => Number((number / norm).toFixed(8)));
  } catch {
    throw new Trouble("The address is damaged: the file in it cannot be read.", "Was all of it copied?");
  }
}

const remembered = new Map(); // address -> state while the page is open: back and forward find the files again
let wasTyping = false; // words that grow are one entry of the history, not one for each pause
function remember(asked, hash, how) {
  remembered.set(hash, asked);
  const method = how === "replace" || (how === "typing" && wasTyping) ? "replaceState" : "pushState";
  if (how !== "none" && hash !== location.hash) history[method](null, "", hash || bare());
  wasTyping = how === "typing";
}

// ---- a search

/** Change the search and run it; how: push or replace an entry of the history, typing (one entry in a row), none. */
function update(change, how = "push") {
  state = { ...state, k: K, ...change };
  if (how === "push") scrollTo({ top: 0 });
  return run(how);
}

async function run(how) {
  clearTimeout(timer);
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const asked = state;
  const files = asked.terms.some(({ kind }) => kind === "file");
  if (document.activeElement.closest(".notice, #clear-filters")) page.results.focus({ preventScroll: true }); // they go
  drawQuery();
  page.error.hidden = true;
  page.results.ariaBusy = "true";
  try {
    if (!files) remember(asked, address(asked), how);
    asked.terms.forEach(checkReady);
    const answer = await request(asked, signal);
    if (signal.aborted) return;
    if (files) remember(asked, address(sealed(asked, answer.embedding)), how);
    if (answer.generation !== index.generation) await describe(); // the index was replaced under the page
    drawAnswer(answer, asked);
  } catch (error) {
    if (signal.aborted) return;
    drawAnswer(null, asked);
    fail(error);
  }
  page.results.ariaBusy = "false";
}

function request({ terms, where, among, k }, signal) {
  const conditions = where.map((one) => phrase({ ...one, value: literal(one.value) }));
  if (!terms.length) {
    if (among) conditions.push(`modality = ${among}`);
    return json(`/v1/items?${new URLSearchParams([["k", k], ...conditions.map((one) => ["where", one])])}`, { signal });
  }
  const names = partNames(terms);
  const query = terms.map((term) => ({ ...wire(term, names), weight: term.weight }));
  const body = JSON.stringify({ query, k, where: conditions, among: among || null });
  const headers = { "Content-Type": "application/json" };
  if (!names.size) return json("/v1/search", { method: "POST", headers, body, signal });
  const form = new FormData();
  form.append("request", body);
  names.forEach((name, term) => form.append(name, term.value, name));
  return json("/v1/search", { method: "POST", body: form, signal });
}

function wire(term, names) {
  if (term.kind === "vector") return { vector: unpack(term.value) };
  return { [term.kind]: names.get(term) ?? term.value, modality: modalityOf(term) };
}

/** Names of the uploaded parts: distinct, and without what multipart would have to escape. */
function partNames(terms) {
  const names = new Map();
  for (const term of terms.filter(({ kind }) => kind === "file")) {
    const name = term.value.name.replace(/["\\%\r\n]/g, "_");
    names.set(term, [...names.values()].includes(name) ? `${names.size + 1}-${name}` : name);
  }
  return names;
}

// ---- what can be asked

const kindAsked = ({ kind, value }) => (kind === "file" ? value.type.split("/")[0] : kind);
const encodersOf = (term) => index.queries.filter(({ kind, ready }) => ready && kind === kindAsked(term));

/** The modality a term is of; undefined where only one can be meant: the server knows it. */
function modalityOf(term) {
  const able = encodersOf(term);
  return term.about || (able.length > 1 ? able[0].name : undefined);
}

function ways() {
  const nouns = { text: "words", image: "pictures", audio: "sounds", video: "videos" };
  const kinds = new Set(index.queries.filter(({ ready }) => ready).map(({ kind }) => nouns[kind] ?? kind));
  return new Intl.ListFormat("en-GB", { type: "disjunction" }).format([...kinds, "its own items"]);
}

function checkReady(term) {
  const known = index.queries.filter(({ kind }) => kind === kindAsked(term));
  if (term.kind === "text" && !known.length)
    throw new Trouble("This index cannot be searched by words.", `Search it by ${ways()}.`);
  if (known.length && !known.some(({ ready }) => ready)) // of a file of no known kind the server knows more
    throw new Trouble(`A query by ${known[0].name} does not work here: ${known[0].why}`, `Search by ${ways()}.`);
}

function checkFile(file) {
  const { body_bytes: limit } = index.limits;
  checkReady({ kind: "file", value: file });
  if (!index.accept.some((suffix) => file.name.toLowerCase().endsWith(suffix)))
    throw new Trouble(`${file.name} is of no kind that this index takes.`, `It takes ${index.accept.join(" ")}`);
  if (file.size > limit)
    throw new Trouble(`${file.name} has ${megabytes(file.size)}, the limit is ${megabytes(limit)}.`, "Shrink it.");
}

function addFiles(files) {
  if (!index || !files.length) return;
  try {
    [...files].forEach(checkFile);
    const kept = page.adding.checked ? state.terms : [];
    update({ terms: [...kept, ...[...files].map((value) => ({ kind: "file", value, about: "", weight: 1 }))] });
  } catch (error) {
    fail(error);
  }
}

const itemTerm = (hit, weight) => ({ kind: "item", value: hit.id, about: hit.modality, weight, label: hit.text });
const searchBy = (hit) => update({ terms: [itemTerm(hit, 1)] });
function combine(hit, weight) {
  const others = state.terms.filter(({ value, about }) => value !== hit.id || about !== hit.modality);
  update({ terms: [...others, itemTerm(hit, weight)] });
}

/** Read the box and the filters, all of them: a pause after the one must not forget the other. */
function readControls(how) {
  const place = state.terms.findIndex(({ kind }) => kind === "text");
  const old = state.terms[place] ?? { kind: "text", about: "", weight: 1 };
  const value = page.words.value.trim();
  const terms = [...(value ? [{ ...old, value }] : []), ...state.terms.filter((_, i) => i !== place)];
  const set = controls().map((node) => ({ ...node.dataset, value: node.value.trim() })).filter((one) => one.value);
  const where = [...set, ...state.where.filter((one) => !controls().some((node) => governs(node, one)))];
  const change = { terms, where, among: page["filter-form"].elements.among?.value ?? "" };
  if (how === "push" || address({ ...state, ...change }) !== address(state)) update(change, how);
}

function typed(event) {
  clearTimeout(timer);
  if (index && !event.isComposing) timer = setTimeout(readControls, PAUSE, "typing");
}

// ---- drawing: the query

const named = ({ kind, value, about, label }) =>
  ({ text: value, item: label ?? value, vector: about || "a file", file: value.name })[kind];

function drawQuery() {
  const words = state.terms.find(({ kind }) => kind === "text")?.value ?? "";
  if (page.words.value.trim() !== words) page.words.value = words;
  redraw(page.terms, state.terms.map(chip));
  page.hint.hidden = state.terms.length > 0;
  page["adding-label"].hidden = !state.terms.length || !index.accept.length;
  page.adding.checked &&= state.terms.length > 0;
  document.title = [state.terms.map(named).join(", "), index.name, "fusemix"].filter(Boolean).join(" · ");
  drawFilters();
}

function chip(term, place) {
  const name = named(term);
  const change = (...others) => update({ terms: state.terms.flatMap((one, i) => (i === place ? others : [one])) });
  const minus = term.weight < 0;
  const node = make("li", { className: "chip" },
    button("sign", (minus ? "−" : "+") + (Math.abs(term.weight) === 1 ? "" : Math.abs(term.weight)),
      () => change({ ...term, weight: -term.weight }), { ariaLabel: `Subtract ${name}`, ariaPressed: String(minus) }),
    ...chipMedia(term),
    make("span", { className: "label", dir: "auto", title: name }, name),
    ...chipEncoder(term, change),
    button("remove", "×", () => change(), { ariaLabel: `Remove ${name}` }));
  Object.assign(node.dataset, { kind: term.kind, weight: term.weight });
  return node;
}

function chipMedia(term) {
  const onerror = (event) => event.target.remove(); // not every browser shows every kind
  const kind = kindAsked(term);
  const file = () => URL.createObjectURL(term.value);
  if (kind === "image") return [make("img", { alt: "", onerror, src: file() })];
  if (kind === "audio") return [player({ onerror, src: file(), ariaLabel: `Sound ${named(term)}` })];
  const modality = index.modalities.find(({ name }) => name === term.about);
  if (term.kind !== "item" || !modality?.previews || modality.kind === "audio") return [];
  const asked = { modality: term.about, id: term.value, g: index.generation };
  return [picture(`/v1/preview?${new URLSearchParams(asked)}`, onerror)];
}

/** Where several encoders take words (or pictures, ...) the term says which. */
function chipEncoder(term, change) {
  const names = encodersOf(term).map(({ name }) => name);
  if (names.length < 2) return [];
  const options = names.map((name) => new Option(name, name));
  const select = make("select", { ariaLabel: `Encoder of ${named(term)}` }, ...options);
  select.value = modalityOf(term);
  select.onchange = () => change({ ...term, about: select.value });
  return [select];
}

// ---- drawing: the filters

const controls = () => [...page["filter-form"].elements].filter((node) => node.dataset.op);
const governs = ({ dataset }, { column, op }) => dataset.column === column && dataset.op === op;

const input = (type, placeholder) => make("input", { type, placeholder, step: "any", autocomplete: "off" });
const choice = (name, values) =>
  make("select", { name }, new Option("any", ""), ...values.map((one) => new Option(one, one)));
const field = (name, ...nodes) =>
  make(nodes.length > 1 ? "div" : "label", { className: "filter" }, make("span", {}, name), ...nodes);

function control(node, column, op, ariaLabel) {
  Object.assign(node.dataset, { column, op });
  return Object.assign(node, { ariaLabel });
}

function columnField({ name, type, values }) {
  if (values) return field(name, control(choice("", values.map(String).filter(Boolean)), name, "=", name));
  if (type !== "number") return field(name, control(input("text", "contains"), name, "~", `${name} contains`));
  return field(name, control(input("number", "min"), name, ">=", `${name} at least`),
    control(input("number", "max"), name, "<=", `${name} at most`));
}

function filterFields({ columns, modalities }) {
  const among = modalities.length > 1 ? [field("among", choice("among", modalities.map(({ name }) => name)))] : [];
  const asked = columns.filter(({ type, values }) => values || type !== "other"); // other: what no condition fits well
  return [...among, ...asked.map(columnField)];
}

function setControl(node, value) {
  if (node.value.trim() === value) return; // it may be the one that is being typed into
  node.value = value;
  if (node.value !== value) node.add?.(new Option(value, value, false, true)); // an address may say any value
}

function drawFilters() {
  controls().forEach((node) => setControl(node, state.where.find((one) => governs(node, one))?.value ?? ""));
  const { among } = page["filter-form"].elements;
  if (among) setControl(among, state.among);
  const chips = state.where.map((one) => [told(one), { where: state.where.filter((other) => other !== one) }]);
  if (state.among) chips.push([`among ${state.among}`, { among: "" }]);
  redraw(page["filter-chips"], chips.map(([name, change]) => make("li", {},
    button("filter-chip", make("span", { dir: "auto" }, name), () => update(change), { ariaLabel: `Remove ${name}` }))));
  page["clear-filters"].hidden = !chips.length;
  page["filter-count"].textContent = chips.length ? `(${chips.length})` : "";
}

const clearFilters = () => update({ where: [], among: "" });

// ---- drawing: the answer

function drawAnswer(answer, { terms, where, among, k }) {
  const { hits, milliseconds, exact } = answer ?? { hits: [] };
  const all = index.modalities.find(({ name }) => name === among)?.items ?? index.items;
  const time = milliseconds == null ? "" : `, ${milliseconds < 1 ? "under 1" : Math.round(milliseconds)} ms`;
  const found = `${count(hits.length)} of ${count(all)} items${time}${exact === false ? ", approximate" : ""}`;
  page.status.textContent = answer ? found : "";
  page.heading.textContent = terms.length ? "Nearest items" : "To begin with";
  page.lead.hidden = terms.length > 0 || !hits.length;
  page.more.hidden = hits.length < k || k >= index.limits.k;
  page.empty.hidden = true;
  if (answer && !hits.length) drawEmpty([...where.map(told), ...(among ? [`among ${among}`] : [])]);
  drawHits(hits);
}

function drawEmpty(filters) {
  tell(page.empty, filters.length
    ? new Trouble("The filters leave no item.", `They are: ${filters.join("; ")}`, "Clear filters", clearFilters)
    : new Trouble("Nothing was found.", index.items ? "" : "This index is empty."));
}

function drawHits(hits) {
  const inside = page.hits.contains(document.activeElement);
  const longer = shown.length && shown.every(({ id, modality, score }, i) =>
    id === hits[i]?.id && modality === hits[i].modality && score === hits[i].score);
  if (longer) page.hits.append(...hits.slice(shown.length).map(card)); // nothing that is in sight flickers
  else {
    release(page.hits);
    page.hits.replaceChildren(...hits.map(card));
    if (inside) (page.hits.querySelector(".open") ?? page.results).focus({ preventScroll: true });
  }
  shown = hits;
}

function card(hit) {
  const name = brief(hit.text ?? hit.id);
  const face = make("div", { className: "face" },
    button("open", tile(hit), () => searchBy(hit), { ariaLabel: `Search by ${name}` }));
  if (index.modalities.length > 1) face.append(make("span", { className: "badge", dir: "auto" }, hit.modality));
  if (hit.kind === "audio" && hit.preview)
    face.append(preview(player({ preload: "none", ariaLabel: `Sound ${name}` }), hit.preview));
  const node = make("li", { className: "card" }, face, facts(hit), make("div", { className: "actions" },
    button("like", "More like this", () => searchBy(hit), { ariaLabel: `More like this: ${name}` }),
    button("add", "+ Add", () => combine(hit, 1), { ariaLabel: `+ Add ${name}` }),
    button("subtract", "− Subtract", () => combine(hit, -1), { ariaLabel: `− Subtract ${name}` })));
  Object.assign(node.dataset, { id: hit.id, modality: hit.modality, kind: hit.kind });
  return node;
}

function tile({ kind, preview: url, text, id }) {
  const node = make("span", { className: "tile" });
  const words = () => make("span", { className: "words", dir: "auto" }, text ?? id);
  if (kind === "audio") node.append(make("span", { className: "glyph" }, "♪"));
  else if (url) node.append(picture(url, (event) => event.target.replaceWith(words())));
  else node.append(words());
  return node;
}

function facts({ id, score, text, kind, preview: url, columns }) {
  const node = make("div", { className: "facts" });
  if (score != null) {
    const fill = make("span", { className: "fill" });
    fill.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
    node.append(make("p", { className: "score" }, make("span", { className: "bar", ariaHidden: "true" }, fill),
      make("span", { className: "unseen" }, "score "), score.toFixed(3)));
  }
  node.append(make("h3", { className: "id", dir: "auto", title: id }, id));
  if (text != null && (url || kind === "audio")) node.append(make("p", { className: "caption", dir: "auto" }, text));
  const values = Object.entries(columns ?? {}).filter(([, value]) => ![null, undefined, "", id, text].includes(value));
  node.append(make("dl", {}, ...values.slice(0, COLUMNS_SHOWN).map(([name, value]) =>
    make("div", {}, make("dt", { dir: "auto" }, name), make("dd", { dir: "auto", title: value }, String(value))))));
  return node;
}

// ---- recording

let recorder = null;
async function record() {
  if (recorder) return recorder.stop();
  page.record.disabled = true;
  try {
    checkReady({ kind: "file", value: { type: "audio/wav" } });
    listen(await navigator.mediaDevices.getUserMedia({ audio: true }));
  } catch (error) {
    const known = { NotAllowedError: "The microphone was not allowed.", NotFoundError: "No microphone was found." };
    fail(error.name in known ? new Trouble(known[error.name], "The lock beside the address has the settings.") : error);
  }
  page.record.disabled = false;
}

function listen(stream) {
  const parts = [];
  const began = performance.now();
  const most = Math.min(RECORD_SECONDS, index.limits.seconds);
  const clock = setInterval(() => {
    const seconds = Math.floor((performance.now() - began) / 1000);
    page["record-label"].textContent = `Stop ${seconds} s`;
    if (seconds >= most) recorder.stop();
  }, 250);
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = () => {
    clearInterval(clock);
    stream.getTracks().forEach((track) => track.stop());
    page["record-label"].textContent = "Record";
    page.record.classList.remove("on");
    const dropped = recorder.dropped;
    recorder = null;
    if (!dropped) heard(new Blob(parts)).catch(fail);
  };
  recorder.start();
  page["record-label"].textContent = "Stop 0 s";
  page.record.classList.add("on");
}

/** What a browser records lies in a container that the server may have no decoder for: it gets a WAV. */
async function heard(blob) {
  const context = new AudioContext();
  const sound = await context.decodeAudioData(await blob.arrayBuffer())
    .catch(() => { throw new Trouble("Nothing was recorded.", "Stop a moment later."); })
    .finally(() => context.close());
  addFiles([new File(wav(sound), "recording.wav", { type: "audio/wav" })]);
}

/** 16 bits, mono. The header is eleven little-endian words, as every machine with a browser writes them. */
function wav(sound) {
  const { numberOfChannels, length, sampleRate } = sound;
  const channels = Array.from({ length: numberOfChannels }, (_, i) => sound.getChannelData(i));
  const level = (i) => channels.reduce((sum, channel) => sum + channel[i], 0) / numberOfChannels;
  const samples = Int16Array.from({ length }, (_, i) => Math.max(-1, Math.min(1, level(i))) * 32767);
  const [RIFF, WAVE, FMT, DATA] = [0x46464952, 0x45564157, 0x20746d66, 0x61746164];
  const header = Uint32Array.of(RIFF, 36 + samples.byteLength, WAVE, FMT, 16, 0x00010001, // 1: PCM, 1: channel
    sampleRate, 2 * sampleRate, 0x00100002, DATA, samples.byteLength); // 2 bytes a frame, 16 bits a sample
  return [header, samples];
}

// ---- keys, drops, pastes

function key(event) {
  const { target, key: name, ctrlKey, metaKey, altKey, isComposing } = event;
  if (ctrlKey || metaKey || altKey || isComposing || document.querySelector("dialog[open]")) return;
  const typing = target.matches("input:not([type=checkbox]), select");
  if (name === "/" && !typing) { page.words.focus(); page.words.select(); }
  else if (name === "?" && (!typing || (target === page.words && !target.value))) page.help.showModal();
  else if (name === "Escape" && recorder) Object.assign(recorder, { dropped: true }).stop();
  else if (name === "Escape" && index && !page["filter-form"].contains(target)) update({ terms: [] });
  else if (!step(target, name)) return;
  event.preventDefault();
}

/** Arrow keys go from card to card; how many stand in a row is asked of the page. */
function step(target, name) {
  const cards = [...page.hits.children];
  const here = target === page.words ? -1 : cards.indexOf(target.closest(".card"));
  const row = cards.filter((node) => node.offsetTop === cards[0].offsetTop).length;
  const jump = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row }[name];
  if (!jump || target.matches("audio") || (here < 0 && (target !== page.words || name !== "ArrowDown"))) return false;
  const next = here < 0 ? cards[0] : cards[here + jump];
  (next?.querySelector(".open") ?? (here + jump < 0 ? page.words : target)).focus();
  return true;
}

function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  page["drop-label"].textContent = page.adding.checked ? "Drop to add it to the query" : "Drop to search by it";
  page.drop.hidden = event.type === "drop" || (event.type === "dragleave" && !event.relatedTarget); // null: outside
  if (event.type === "drop") addFiles(event.dataTransfer.files);
}

function pasted(event) {
  if (!event.clipboardData?.files.length) return; // words go where the caret is
  event.preventDefault();
  addFiles(event.clipboardData.files);
}

async function copyAddress() {
  try {
    await navigator.clipboard.writeText(location.href);
    page["copy-label"].textContent = "Copied";
  } catch {
    page["copy-label"].textContent = "Copy it from the address bar"; // the clipboard is for https and localhost
  }
  setTimeout(() => { page["copy-label"].textContent = "Copy address"; }, 2500);
}

async function showMore() {
  const first = shown.length;
  await update({ k: Math.min(2 * state.k, index.limits.k) }, "replace");
  page.hits.children[first]?.querySelector(".open").focus({ preventScroll: true });
}

// ---- the start

function whyNoRecording() {
  if (!index.queries.some(({ kind }) => kind === "audio")) return "No modality of this index takes sound";
  if (!window.isSecureContext) return "Browsers record only over https or on localhost";
  return navigator.mediaDevices?.getUserMedia && window.MediaRecorder ? "" : "This browser cannot record";
}

async function describe() {
  index = await json("/v1/index");
  page.name.textContent = index.name;
  const names = index.modalities.map(({ name }) => name).join(", ");
  page.facts.textContent = `${count(index.items)} items · ${names} · ${index.dim} dimensions`;
  page.hits.classList.toggle("mixed", index.modalities.length > 1);
  page.hint.textContent = `Search by ${ways()}.${index.accept.length ? " Files can be dropped anywhere, or pasted." : ""}`;
  page.file.accept = index.accept.join();
  page.choose.disabled = !index.accept.length;
  page.record.title = whyNoRecording();
  page.record.disabled = Boolean(page.record.title);
  page["filter-form"].replaceChildren(...filterFields(index));
  page.filters.hidden = !page["filter-form"].elements.length;
  drawFilters();
}

function restore() {
  takeToken();
  state = remembered.get(location.hash) ?? readAddress();
  return run("none");
}

async function start() {
  page.error.hidden = true;
  takeToken();
  try {
    await describe();
  } catch (error) {
    return fail(error);
  }
  await restore();
}

function submit(event) {
  event.preventDefault();
  if (index) readControls("push");
}

page["search-form"].onsubmit = submit;
page["filter-form"].onsubmit = submit;
page["search-form"].oninput = page["filter-form"].oninput = page.words.oncompositionend = typed;
page["clear-filters"].onclick = clearFilters;
page.choose.onclick = () => page.file.click();
page.file.onchange = () => { addFiles(page.file.files); page.file.value = ""; };
page.record.onclick = record;
page.copy.onclick = copyAddress;
page.more.onclick = showMore;
page["open-help"].onclick = () => page.help.showModal();
page["token-cancel"].onclick = () => page["token-dialog"].close();
page.skip.onclick = (event) => { event.preventDefault(); page.results.focus(); }; // the address belongs to the search
for (const type of ["dragover", "dragleave", "drop"]) addEventListener(type, dragged);
addEventListener("paste", pasted);
addEventListener("keydown", key);
addEventListener("popstate", () => { if (index) restore(); });
start();
