"use strict";
const PERIOD = 2000, LINE = /^(forebay_\w+)(?:\{(.*)\})? (\S+)/, LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
let before = null;

function parse(text) {
  const samples = {};
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] || "").matchAll(LABEL)].map((one) => [one[1], one[2]]));
    (samples[found[1].slice(8)] ||= []).push([labels, Number(found[3].replace("+Inf", "Infinity"))]);
  }
  return { at: performance.now() / 1000, samples };
}
const total = (look, name) => (look.samples[name] || []).reduce((sum, one) => sum + one[1], 0);
const most = (look, name) => Math.max(0, ...(look.samples[name] || []).map((one) => one[1]));  // of several workers
const number = (value) => Math.round(value).toLocaleString("en");
function reasons(look, name) {
  const found = {};
  for (const [labels, value] of look.samples[name] || [])
    if (value) found[labels.reason] = (found[labels.reason] || 0) + value;
  return Object.keys(found).sort().join(", ");
}
function seconds(value) {
  if (value >= 1) return `${Number(value.toPrecision(3))} s`;
  return value >= 1e-3 ? `${Number((value * 1e3).toPrecision(3))} ms` : `${Number((value * 1e6).toPrecision(3))} µs`;
}
function bytes(value) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  return `${value} B`;
}
function flow(look, name) {
  const now = total(look, name), then = before ? total(before, name) : now;
  const said = `${number(now)} in all`;
  return before && now >= then ? `${number((now - then) / (look.at - before.at))}/s, ${said}` : said;
}
function mean(look, name) {
  const count = total(look, `${name}_count`), sum = total(look, `${name}_sum`);
  const fresh = before ? count - total(before, `${name}_count`) : 0;
  if (fresh > 0) return seconds((sum - total(before, `${name}_sum`)) / fresh);
  return count ? seconds(sum / count) : "–";
}
function fill(look, name) {
  const used = total(look, `${name}_bytes`), capacity = total(look, `${name}_capacity_bytes`);
  return { share: capacity ? used / capacity : 0, said: `${Math.round((100 * used) / capacity || 0)} % of ${bytes(capacity)}` };
}

// What is wrong, and what to type. The most urgent first.
function troubles(look, reason) {
  const found = [];
  const add = (count, said, type, level) => count && found.push({ said, type, level: level || "bad" });
  add(reason, `Not ready: ${reason}`, "forebay doctor");
  const dropped = total(look, "changes_dropped_total"), refused = total(look, "changes_refused_total");
  const letters = total(look, "changes_dead_lettered_total"), parked = total(look, "journals_parked");
  add(dropped, `${number(dropped)} changes were left out (${reasons(look, "changes_dropped_total")})`, null, "warn");
  add(refused, `${number(refused)} changes were turned away (${reasons(look, "changes_refused_total")})`, "forebay doctor");
  add(letters, `The database refused ${number(letters)} rows since the start`, "forebay dead-letters list", "warn");
  add(parked, `${number(parked)} journals can't be read or removed`, "forebay doctor");
  const alone = total(look, "journals_left_alone");
  add(alone, `${number(alone)} journals are another database's, and nobody writes them out`, "forebay doctor", "warn");
  const held = total(look, "parked_threads");
  add(held, `The database holds ${number(held)} threads up, whose ${number(total(look, "parked_changes"))} changes wait`, "forebay doctor", "warn");
  const alarms = total(look, "checkpoint_alarms_total");
  add(alarms, "The database was not where it was left, as after a failover", "forebay doctor", "warn");
  add(total(look, "writer_paused"), "Nearly every row is refused, so the writer waits between two tries", "forebay dead-letters list");
  add(fill(look, "queue").share >= 0.9, "The queue is nearly full: writes will wait, then fail", "forebay doctor");
  add(fill(look, "journal").share >= 0.9, "The journal is nearly full: writes will wait, then fail", "forebay doctor");
  const age = most(look, "queue_oldest_age_seconds");
  add(age > 5, `Writes do not keep up: the oldest has waited for ${seconds(age)}`, "forebay status --watch", "warn");
  const contents = total(look, "upload_failures_total");
  add(contents, `${number(contents)} elements were stored without their content`, "forebay doctor", "warn");
  return found;
}

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function row(name, said, share) {
  const made = element("tr"), head = element("th", name), cell = element("td");
  head.scope = "row";
  if (share !== undefined) {
    const meter = element("meter");
    Object.assign(meter, { min: 0, max: 1, high: 0.9, low: 0.5, optimum: 0, value: share });
    meter.setAttribute("aria-label", `${name}: ${said}`);
    cell.append(meter, " ");
  }
  cell.append(said);
  made.append(head, cell);
  return made;
}
function state(text, kind) {
  const place = document.getElementById("state");
  if (place.textContent === text) return;  // or a screen reader would say it again and again
  place.textContent = text;
  place.className = kind;
}
function show(look, reason) {
  const wrong = troubles(look, reason);
  const bad = wrong.some((one) => one.level === "bad");
  state(
    reason ? "Not ready" : bad ? "Ready, but something is wrong" : wrong.length ? "Ready; look below" : "Ready, and all is well",
    bad ? "bad" : wrong.length ? "warn" : "good",
  );
  document.getElementById("troubles").replaceChildren(
    ...wrong.map((one) => {
      const made = element("li");
      made.append(element("span", one.said, one.level));
      if (one.type) made.append(". Type ", element("code", one.type));
      return made;
    }),
  );
  document.getElementById("nothing").hidden = wrong.length > 0;
  const rows = [], queue = fill(look, "queue"), journal = fill(look, "journal");
  rows.push(row("Queue", queue.said, queue.share));
  rows.push(row("Queued", `${number(total(look, "queue_changes"))} rows, the oldest ${seconds(most(look, "queue_oldest_age_seconds"))} old`));
  if (look.samples.journal_bytes) rows.push(row("Journal", journal.said, journal.share));
  rows.push(row("Accepted", flow(look, "changes_accepted_total")), row("Coalesced", flow(look, "changes_coalesced_total")));
  rows.push(row("Written", flow(look, "rows_written_total")));
  if (total(look, "changes_handed_over_total")) rows.push(row("Handed over", flow(look, "changes_handed_over_total")));
  rows.push(row("Failed attempts", number(total(look, "flush_retries_total"))));
  for (const [name, metric] of [["write latency", "write_latency_seconds"], ["flush", "flush_duration_seconds"],
    ["journal sync", "journal_commit_duration_seconds"], ["read", "read_duration_seconds"], ["loop lag", "event_loop_lag_seconds"]])
    rows.push(row(`Mean ${name}`, mean(look, metric)));
  document.getElementById("figures").replaceChildren(...rows);
  const [build] = look.samples.build_info || [[{}]];
  document.getElementById("build").textContent =
    `forebay ${build[0].version}, Chainlit ${build[0].chainlit}, Python ${build[0].python}`;
  before = look;
}
async function look() {
  try {
    const [metrics, ready] = await Promise.all([fetch("metrics", { headers: { Accept: "text/plain" } }), fetch("readyz")]);
    if (!metrics.ok) throw new Error();
    show(parse(await metrics.text()), (await ready.json()).reason || null);
  } catch {
    before = null;
    state("The process does not answer", "bad");
  }
  setTimeout(look, PERIOD);
}
look();
