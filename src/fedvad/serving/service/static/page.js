"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = 60; // results of a session
const THUMB = 96; // pixels
const TRIES = 8; // when the service is busy
const SURE = 0.95; // confidence of what held-out images promise
const CLOSE = 0.9; // a score of at least this share of the threshold is borderline

let info = null;
let site = ""; // of those that the service offers; empty: all
let token = sessionStorage.getItem("fedvad-token") || "";
let threshold = null; // what decides now
const results = []; // newest first: {name, url, score, heat, blob, size, error, item, what}
let current = null;
let stream = null;
let working = Promise.resolve(); // images are sent one after another
let waiting = 0;
let region = null; // [x, y, width, height] in pixels of the current image, if a part is meant

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const digits = (value) => Number(value.toPrecision(4)).toString();
const exact = (value) => Number(value.toPrecision(6)).toString();
const percent = (share, places = 2) => `${Number((100 * share).toPrecision(places))} %`;

// ---- talking to the service

async function ask(path, options = {}) {
  let answer;
  let used;
  for (let attempt = 1; ; attempt += 1) {
    used = token;
    try {
      answer = await fetch(path, { ...options, headers: headers() });
    } catch {
      throw new Error("The service does not answer. Is it still running?");
    }
    if ((answer.status !== 429 && answer.status !== 503) || attempt === TRIES) break;
    await pause(Number(answer.headers.get("Retry-After")) || 1);
  }
  if (answer.ok) return answer;
  // a late refusal of an earlier token says nothing about the one typed since
  if (answer.status === 401 && token === used) askForToken();
  const problem = await answer.json().catch(() => null);
  throw new Error(problem?.error?.message ?? `The service answered ${answer.status}.`);
}

const chosen = (sign) => (site ? `${sign}site=${encodeURIComponent(site)}` : "");

async function score(blob, name) {
  const limit = info?.limits.max_file_bytes;
  if (limit && blob.size > limit) {
    throw new Error(`${name} is larger than ${Math.floor(limit / 1e6)} MB, the limit of this service.`);
  }
  const answer = await post(`/v1/predict?heatmap=true${chosen("&")}`, blob, name);
  return (await answer.json()).results[0];
}

function post(path, blob, name) {
  const form = new FormData();
  form.append("files", blob, name);
  return ask(path, { method: "POST", body: form });
}

// ---- images in

function add(blobs) {
  for (const [blob, name] of blobs) {
    waiting += 1;
    working = working.then(() => judge(blob, name));
  }
}

async function judge(blob, name) {
  complain("");
  say(`Looking at ${name} …`, "");
  $("result").setAttribute("aria-busy", "true");
  name = distinct(name);
  const asked = site;
  const entry = { name, blob, url: URL.createObjectURL(blob), score: null, heat: null, error: null };
  await look(entry);
  waiting -= 1;
  if (asked !== site) return; // another one was chosen meanwhile
  $("result").setAttribute("aria-busy", "false");
  remember(entry, blob);
  stretch();
  show(entry);
}

async function look(entry) {
  try {
    const found = await score(entry.blob, entry.name);
    entry.score = found.score;
    entry.heat = found.heatmap && `data:image/png;base64,${found.heatmap}`;
    entry.error = found.error && `This file is damaged, too large, or no image. (${found.error.message})`;
    entry.size = [found.width, found.height];
  } catch (error) {
    entry.error = error.message;
  }
}

function distinct(name) { // images of several folders often have the same name
  const known = new Set(results.map((entry) => entry.name));
  let shown = name;
  for (let number = 2; known.has(shown); number += 1) shown = `${name} (${number})`;
  return shown;
}

// ---- one result

function decision(entry) {
  if (entry.score === null) return ["Not scored", ""];
  if (threshold === null) return ["Scored", ""];
  if (entry.score > threshold) return ["Anomalous", "bad"];
  return entry.score > CLOSE * threshold ? ["Borderline, just below the threshold", "close"]
    : ["Below the threshold", "good"];
}

function show(entry) {
  current = entry;
  complain(entry.error ?? "");
  $("shown").hidden = entry.score === null;
  if (entry.score !== null) {
    $("photo").alt = `The image ${entry.name}`;
    $("picture").classList.remove("alone");
    $("picture").style.setProperty("--aspect", entry.size[0] / entry.size[1]);
    $("photo").hidden = $("no-photo").hidden = true;
    $("photo").src = entry.url;
    $("heat").src = entry.heat;
    $("heat").alt = `Heat-map of ${entry.name}`;
    fade();
  }
  mark(null);
  tell();
}

function tell() { // all that depends on the threshold
  if (current) {
    const [word, kind] = decision(current);
    say(`${word}: ${current.name}${waiting ? ` (${waiting} more to come)` : ""}`, kind);
    if (current.score !== null) {
      $("figures").textContent = `Score ${digits(current.score)}` +
        (threshold === null ? "; this run has no threshold." : `, threshold ${digits(threshold)}`);
    }
  }
  $("past").hidden = !results.length;
  const counts = {};
  for (const entry of results) {
    const [word, kind] = decision(entry);
    counts[word] = (counts[word] ?? 0) + 1;
    entry.what.className = `what ${kind}`;
    entry.what.textContent = entry.score === null ? word : `${word} · ${digits(entry.score)}`;
    entry.item.firstChild.setAttribute("aria-current", String(entry === current));
  }
  $("tally").textContent = Object.entries(counts).map(([word, n]) => `${n} ${word.toLowerCase()}`).join(", ");
}

// ---- answers to what was decided

const mayAnswer = () => info?.feedback && (info.site || !info.sites.length);

function mark(box) { // what an answer is about
  region = box;
  $("answering").hidden = !info?.feedback || current?.score == null;
  $("normal").disabled = $("defect").disabled = !mayAnswer();
  $("picture").classList.toggle("drawing", Boolean(mayAnswer()));
  $("whole").hidden = $("region").hidden = !box;
  $("answer-hint").textContent = !mayAnswer() ? "Choose your site above to answer: an answer counts at one site."
    : box ? "The answer will be about the rectangle." : "The answer will be about what the heat-map marks. To mean another part, draw a rectangle.";
  if (!box) return;
  const [width, height] = current.size;
  const share = (value, of) => `${(100 * value) / of}%`;
  Object.assign($("region").style, {
    left: share(box[0], width), top: share(box[1], height), width: share(box[2], width), height: share(box[3], height),
  });
}

function draw(event) {
  if (!mayAnswer() || event.button) return;
  event.preventDefault();
  const frame = $("picture").getBoundingClientRect();
  const [width, height] = current.size;
  const at = (e) => [
    Math.min(Math.max(Math.round(((e.clientX - frame.left) / frame.width) * width), 0), width),
    Math.min(Math.max(Math.round(((e.clientY - frame.top) / frame.height) * height), 0), height),
  ];
  const from = at(event);
  $("picture").setPointerCapture(event.pointerId);
  $("picture").onpointermove = (e) => {
    const to = at(e);
    const box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(from[0] - to[0]), Math.abs(from[1] - to[1])];
    mark(box[2] && box[3] ? box : null);
  };
  $("picture").onpointerup = $("picture").onpointercancel = () => { $("picture").onpointermove = null; };
}

async function answer(verdict) {
  const entry = current;
  const about = region ? `&region=${region.join(",")}` : "";
  await change(async () => {
    await post(`/v1/feedback?verdict=${verdict}${about}${chosen("&")}`, entry.blob, entry.name);
  });
}

async function change(work) { // of the run, then the images of the session are scored again
  complain("");
  $("normal").disabled = $("defect").disabled = true;
  try {
    await work();
  } catch (error) {
    mark(region);
    complain(error.message);
    return;
  }
  const entry = current;
  if (entry?.score != null) {
    await look(entry);
    show(entry);
  }
  for (const part of [showAnswers, showSites, showLines]) await part().catch((error) => complain(error.message));
}

async function showAnswers() {
  $("answers").hidden = true;
  if (!info.feedback) return;
  const found = await (await ask("/v1/feedback")).json();
  $("answers").hidden = !found.length;
  $("answer-list").replaceChildren(...found.reverse().map((given) => {
    const item = document.createElement("li");
    const part = given.region ? `, region ${given.region.join(", ")}` : "";
    const when = (date) => new Date(date).toLocaleString();
    item.append(text("", `${given.number}: ${given.name}${part}, ${given.site}: ${given.verdict}, ${when(given.date)}`));
    if (given.undone) {
      item.append(text("quiet", `, undone ${when(given.undone)}`));
    } else {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Undo answer ${given.number}`;
      button.addEventListener("click", () => change(() => ask(`/v1/feedback/${given.number}/undo`, { method: "POST" })));
      item.append(document.createElement("br"), button);
    }
    return item;
  }));
}

function say(text, kind) {
  $("say").className = `verdict ${kind}`;
  if ($("say").textContent !== text) $("say").textContent = text; // else it is read out again
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function fade() {
  const value = $("opacity").value;
  // without a photograph below it, a faded map would show nothing
  $("heat").style.opacity = $("picture").classList.contains("alone") ? 1 : value / 100;
  $("opacity-value").textContent = `${value} %`;
  $("opacity").setAttribute("aria-valuetext", `${value} percent`);
}

// ---- the threshold

function stretch() {
  const own = info?.calibration?.threshold ?? 0;
  const highest = Math.max(0, ...results.map((entry) => entry.score ?? 0));
  const top = Math.max(2 * own, 1.1 * highest) || 1;
  if (threshold !== null && top > Number($("threshold").max)) $("threshold").max = top;
}

function decide(value) {
  threshold = value;
  const own = info.calibration.threshold;
  $("threshold").value = value;
  $("threshold-value").textContent = digits(value);
  $("rate").textContent = rate(value);
  $("use").hidden = value === own;
  $("use").textContent = `To decide by it elsewhere: --threshold ${exact(value)} at fedvad predict or fedvad serve, ` +
    `or ?threshold=${exact(value)} in a request.`;
  $("threshold").setAttribute("aria-valuetext", digits(value));
  $("reset").disabled = value === own;
  tell();
}

function rate(value) {
  const { threshold: own, target_fpr: target, n, scores, method } = info.calibration;
  if (target === null && !scores) return "This threshold was given to the service; how often it is exceeded by normal images is unknown.";
  if (value === own && target !== null) {
    const rough = method === "conformal" ? "" : ", extrapolated";
    const whose = info.site ? "" : " It is the median of the sites' thresholds; at some sites it may stop more.";
    const sure = scores ? ` ${promised(own, scores)}` : "";
    return `The run's threshold: expected to stop at most ${percent(target)} of normal images (from ${n} held-out ones${rough}).${sure}${whose}`;
  }
  if (scores) {
    const above = scores.filter((score) => score > value).length;
    return `Expected false alarms: about ${percent(above / scores.length)} of normal images (${above} of ${n} held-out ones). ${promised(value, scores)}`;
  }
  if (value > own) return `Expected false alarms: at most ${percent(target)}, as it is above the run's threshold.`;
  return `Expected false alarms: unknown, more than at the run's threshold (at most ${percent(target)} there).`;
}

// What fedvad's own verdict says: the upper Clopper-Pearson limit of the rate, by bisection.
function promised(value, scores) {
  const n = scores.length;
  const above = scores.filter((score) => score > value).length;
  let low = above / n, high = 1;
  for (let step = 0; step < 50 && above < n; step++) {
    const rate = (low + high) / 2;
    // log of n choose k times rate^k (1 - rate)^(n - k), summed over k = 0 to above
    let term = n * Math.log1p(-rate), sum = Math.exp(term);
    for (let k = 1; k <= above; k++) {
      term += Math.log((n - k + 1) / k) + Math.log(rate) - Math.log1p(-rate);
      sum += Math.exp(term);
    }
    if (sum > 1 - SURE) low = rate; else high = rate;
  }
  return `${n} normal images promise at most ${percent(high, 3)} with ${percent(SURE)} confidence.`;
}

// ---- the session

function remember(entry, blob) {
  const button = document.createElement("button");
  const thumb = document.createElement("canvas");
  thumb.width = thumb.height = THUMB;
  createImageBitmap(blob, { resizeWidth: THUMB, resizeHeight: THUMB, resizeQuality: "medium" })
    .then((small) => thumb.getContext("2d").drawImage(small, 0, 0), () => {}); // TIFF: stays blank
  entry.what = text("what", "");
  button.type = "button";
  button.append(thumb, text("name", entry.name), entry.what);
  button.addEventListener("click", () => show(entry));
  entry.item = document.createElement("li");
  entry.item.append(button);
  results.unshift(entry);
  $("history").prepend(entry.item);
  for (const old of results.splice(KEPT)) forget(old);
}

function forget(entry) {
  URL.revokeObjectURL(entry.url);
  entry.item.remove();
}

function text(kind, content) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = content;
  return span;
}

function save() {
  // a leading sign would make a spreadsheet run the name as a formula
  const quoted = (value) => `"${String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const rows = [...results].reverse().map((entry) =>
    [quoted(entry.name), entry.score ?? "", threshold ?? "", quoted(decision(entry)[0]), quoted(entry.error)].join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["name,score,threshold,decision,error", ...rows, ""].join("\r\n")], { type: "text/csv" }));
  link.download = "fedvad-session.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function clear() {
  for (const entry of results.splice(0)) forget(entry);
  current = null;
  $("shown").hidden = $("answering").hidden = true;
  complain("");
  say("No image yet.", "");
  tell();
  $("file").focus();
}

// ---- the camera

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) { // not over plain http from another machine
    $("shot").click();
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
  } catch (error) {
    complain(error.name === "NotAllowedError" ? "The browser was not allowed to use the camera."
      : "No camera was found.");
    return;
  }
  $("video").srcObject = stream;
  await $("video").play();
  $("live").hidden = false;
  $("camera").hidden = true;
  $("take").focus();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("live").hidden = true;
  $("camera").hidden = false;
  $("camera").focus();
}

function takePicture() {
  const canvas = document.createElement("canvas");
  canvas.width = $("video").videoWidth;
  canvas.height = $("video").videoHeight;
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const name = `camera ${new Date().toLocaleTimeString()}.png`;
  canvas.toBlob((blob) => blob && add([[blob, name]]), "image/png"); // no artefacts of compression
}

// ---- samples, token, start

async function showSamples() {
  const samples = await (await ask("/v1/samples")).json();
  $("samples").hidden = !samples.length;
  $("samples").open = innerWidth > 700;
  const items = await Promise.all(samples.map(async (sample) => {
    const blob = await (await ask(`/v1/samples/${sample.id}`)).blob();
    const picture = new Image();
    picture.src = URL.createObjectURL(blob);
    picture.alt = "";
    const button = document.createElement("button");
    button.type = "button";
    button.append(picture, text("", sample.defect));
    button.title = `${sample.site}, ${sample.defect}, ${sample.name}`;
    button.addEventListener("click", () => add([[blob, `${sample.defect} ${sample.name}`]]));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  $("sample-list").replaceChildren(...items);
}

async function showSites() {
  const found = await (await ask("/v1/sites")).json();
  $("overview").hidden = !found.length;
  const shown = (value) => (value === null ? "–" : digits(value));
  $("overview-rows").replaceChildren(...found.map((row) => element("tr", ...[
    row.run, row.site, shown(row.threshold), row.promised ?? "–", row.n_images, shown(row.image_auroc), row.answers,
  ].map((content) => element("td", content)))));
}

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

async function showLines() {
  const found = await (await ask("/v1/lines")).json();
  $("lines").hidden = !found.length;
  $("line-list").replaceChildren(...await Promise.all(found.map(shownLine)));
}

async function shownLine(line) {
  const says = element("p", line.missing && !line.changed.length
    ? `${line.says} Light, focus and position are compared after ${line.missing} more.` : line.says);
  says.className = line.changed.length ? "bad" : "quiet";
  const heads = ["Day", "Images", "Stopped", "Share", "Unreadable"];
  const rows = line.days.map((one) => [
    one.day, one.images, one.stopped, one.images ? `${(100 * one.stopped / one.images).toFixed(1)} %` : "–", one.unreadable,
  ]);
  const part = element("article", element("h3", line.site ? `${line.name}, site ${line.site}` : line.name), says);
  if (line.picture) {
    const picture = element("img");
    picture.alt = `Images before and now. ${line.says}`;
    picture.src = URL.createObjectURL(await (await ask(`/v1/lines/${line.id}/changed`)).blob());
    picture.onload = () => URL.revokeObjectURL(picture.src);
    part.append(picture);
  }
  part.append(element("table",
    element("thead", element("tr", ...heads.map((head) => element("th", head)))),
    element("tbody", ...rows.map((row) => element("tr", ...row.map((content) => element("td", content))))),
  ));
  return part;
}

function askForToken() {
  token = "";
  sessionStorage.removeItem("fedvad-token");
  $("login").hidden = false;
  $("main").hidden = true;
  $("token").focus();
}

async function start() {
  try {
    info = await (await ask(`/v1/info${chosen("?")}`)).json();
  } catch (error) {
    if ($("login").hidden) complain(error.message);
    return;
  }
  $("login").hidden = true;
  $("main").hidden = false;
  if (token) sessionStorage.setItem("fedvad-token", token);
  if (info.sites.length && !$("site").options.length) {
    $("site").append(new Option("All sites (median of their thresholds)", ""), ...info.sites.map((name) => new Option(name, name)));
    const before = sessionStorage.getItem("fedvad-site");
    if (before && info.sites.includes(before)) {
      $("site").value = site = before;
      return start();
    }
  }
  $("choosing").hidden = !info.sites.length;
  const which = info.site ? `site ${info.site}` : "all sites: choose yours, its own threshold fits better";
  $("served").textContent = [info.name, which].filter(Boolean).join(", ");
  document.title = [info.name, "fedvad"].filter(Boolean).join(" · ");
  $("deciding").hidden = !info.calibration;
  threshold = null;
  if (info.calibration) {
    threshold = info.calibration.threshold;
    $("threshold").max = 2 * threshold || 1;
    decide(threshold);
  }
  if (info.feedback) {
    $("kept").textContent = "Of images that you answer the run keeps some patches, and their names; other images are scored and kept nowhere.";
  }
  mark(null);
  await showSamples().catch((error) => complain(error.message));
  for (const part of [showAnswers, showSites, showLines]) await part().catch((error) => complain(error.message));
}

function choose() { // scores of another site's memory do not compare
  site = $("site").value;
  sessionStorage.setItem("fedvad-site", site);
  clear();
  $("site").focus();
  start();
}

const named = (files) => [...files].map((file) => [file, file.name]);
for (const id of ["file", "shot"]) {
  $(id).addEventListener("change", () => { add(named($(id).files)); $(id).value = ""; });
}
let depth = 0; // a drag enters each child again
addEventListener("dragenter", () => { depth += 1; $("drop").classList.add("over"); });
addEventListener("dragleave", () => { depth -= 1; $("drop").classList.toggle("over", depth > 0); });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").classList.remove("over");
  if (!$("main").hidden) add(named(event.dataTransfer.files));
});
addEventListener("paste", (event) => { if (!$("main").hidden) add(named(event.clipboardData.files)); });
addEventListener("pagehide", () => stream && closeCamera());
$("photo").addEventListener("load", () => { $("photo").hidden = false; });
$("photo").addEventListener("error", () => { // TIFF, in most browsers
  $("picture").classList.add("alone");
  $("no-photo").hidden = false;
  fade();
});
$("picture").addEventListener("pointerdown", draw);
$("normal").addEventListener("click", () => answer("normal"));
$("defect").addEventListener("click", () => answer("defect"));
$("whole").addEventListener("click", () => mark(null));
$("opacity").addEventListener("input", fade);
$("threshold").addEventListener("input", () => decide(Number($("threshold").value)));
$("reset").addEventListener("click", () => decide(info.calibration.threshold));
$("site").addEventListener("change", choose);
$("save").addEventListener("click", save);
$("clear").addEventListener("click", clear);
$("camera").addEventListener("click", openCamera);
$("take").addEventListener("click", takePicture);
$("stop").addEventListener("click", closeCamera);
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  start();
});
setInterval(() => {
  if (!document.hidden && !$("lines").hidden) showLines().catch((error) => complain(error.message));
}, 30_000);
start();
