// Builds a page from its layout and keeps every panel up to date.
import { Chart } from "./charts.js";
import { openEvent } from "./drill.js";
import { age, duration, element, format } from "./format.js";
import { PlainTable, Stats } from "./tables.js";

const page = location.pathname.slice(1);
const chosen = new URLSearchParams(location.search);
const health = document.getElementById("health");
const cards = [];

async function get(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

class Card {
  constructor(panel, currency) {
    this.panel = panel;
    this.currency = currency;
    this.mark = element("span", { class: "mark empty" }, "waiting");
    this.ageText = element("span", { class: "age" });
    const name = element("span", { class: "name", title: panel.help }, panel.title);
    this.note = element("span", { class: "note" });
    // Where money is in one currency, the panel says in which.
    if (currency && panel.kind !== "pivot" && panel.columns.some((column) => column.unit === "money")) this.note.textContent = currency;
    this.body = element("div", { class: "body" });
    this.node = element("section", { class: `panel ${panel.kind}`, id: `panel-${panel.name}` },
      element("h2", {}, name, this.note, element("span", { class: "fresh" }, this.ageText, this.mark)), this.body);
    this.node.style.gridColumn = `span ${panel.width}`;
    this.node.dataset.width = panel.width;
    this.node.style.gridRow = `span ${panel.height}`;
    this.nothing = element("div", { class: "empty-note" }, "Nothing in this window");
    this.nothing.hidden = true;
    cards.push(this);
  }

  // Libraries need the element in the page and its size known.
  async mount() {
    if (this.panel.kind === "pivot") {
      const { Pivot } = await import("./pivots.js");
      this.drawn = new Pivot(this.body, this.panel, openEvent);
      await this.drawn.ready;
    } else if (this.panel.kind === "stat") this.drawn = new Stats(this.body, this.panel);
    else if (this.panel.kind === "table") this.drawn = new PlainTable(this.body, this.panel);
    else {
      this.body.classList.add("chart");
      const canvas = element("div");
      canvas.style.cssText = "position:absolute;inset:0";
      this.body.append(canvas);
      this.drawn = new Chart(canvas, this.panel);
    }
    this.body.append(this.nothing);
    this.follow();
  }

  async follow() {
    for (;;) {
      const version = this.version;
      if (!document.hidden) await this.refresh();
      await new Promise((done) => {
        this.wake = done;
        setTimeout(done, version === this.version ? this.panel.refresh_ms : 0);
      });
    }
  }

  async refresh() {
    const pivot = this.panel.kind === "pivot";
    const path = pivot ? `/api/freshness/${this.panel.name}` : `/api/panels/${this.panel.name}?${chosen}`;
    const asked = chosen.toString();
    try {
      const answer = await get(path);
      // What was chosen meanwhile is on its way.
      if (asked !== chosen.toString()) return;
      this.answered = performance.now();
      this.answer = answer;
      this.failure = "";
      if (!pivot) {
        this.nothing.hidden = answer.rows.length > 0;
        this.drawn.show(answer.rows);
        this.annotate(answer.rows);
        this.node.dataset.updates = Number(this.node.dataset.updates ?? 0) + 1;
      }
    } catch (error) {
      this.failure = error.message;
    }
    this.showFreshness();
    const failed = cards.filter((card) => card.failure).length;
    health.textContent = failed ? `${failed} panels cannot be refreshed` : "";
  }

  annotate(rows) {
    if (this.panel.kind === "backtest" && rows.length) {
      const last = rows.at(-1);
      const p = (value) => format(value, "probability");
      const unit = this.currency ? `${this.currency}, ` : "";
      this.note.textContent = `${unit}${last.exceptions} exceptions in ${last.observations} days at ${last.level}, zone ${last.zone}, Kupiec p ${p(last.kupiec_p)}, Christoffersen p ${p(last.christoffersen_p)}`;
    }
  }

  showFreshness() {
    const answer = this.answer;
    if (this.failure) this.setMark("failed", "not refreshed", this.failure);
    else if (!answer) return;
    else if (answer.age_ms === null) this.setMark("empty", "no data", "The table is empty.");
    else if (answer.provisional) this.setMark("provisional", "provisional", answer.why);
    else this.setMark("settled", "settled", "Nothing newer is known, and nothing here is in doubt.");
    if (answer && answer.age_ms !== null) {
      const now = answer.age_ms + performance.now() - this.answered;
      this.ageText.textContent = `${age(now)} old`;
      this.ageText.dataset.ageMs = Math.round(now);
    } else this.ageText.textContent = "";
  }

  setMark(kind, text, why) {
    this.mark.className = `mark ${kind}`;
    this.mark.textContent = text;
    this.mark.title = why;
  }
}

function select(name, label, values, current, shown = String) {
  const box = element("select", { name, id: `filter-${name}` });
  for (const value of values) box.append(element("option", { value }, shown(value)));
  box.value = current;
  box.addEventListener("change", () => {
    chosen.set(name, box.value);
    history.replaceState(null, "", `?${chosen}`);
    for (const card of cards) {
      card.version = (card.version ?? 0) + 1;
      card.wake?.();
    }
  });
  return element("label", {}, label, box);
}

async function filters(layout) {
  const host = document.getElementById("filters");
  let choices = {};
  try {
    if (layout.filters.length) choices = await get(`/api/choices/${page}`);
  } catch (error) {
    health.textContent = error.message;
  }
  for (const filter of layout.filters) {
    const values = [...(filter.default === "all" ? ["all"] : []), ...(choices[filter.name] ?? [])];
    const kept = chosen.get(filter.name);
    const current = values.includes(kept) ? kept : values.includes(filter.default) ? filter.default : values[0] ?? "";
    if (current) chosen.set(filter.name, current);
    const shown = filter.shown === "duration" ? (value) => duration(Number(value)) : String;
    host.append(select(filter.name, filter.label, values, current, shown));
  }
  if (!layout.windows.includes(chosen.get("window"))) chosen.set("window", "15m");
  host.append(select("window", "Last", layout.windows, chosen.get("window")));
}

async function start() {
  const layout = await get(`/api/layout/${page}`);
  document.title = `${layout.title} · riskstream`;
  const menu = document.getElementById("pages");
  for (const other of layout.pages) {
    const link = element("a", { href: `/${other.name}` }, other.title);
    if (other.name === page) link.setAttribute("aria-current", "page");
    menu.append(link);
  }
  await filters(layout);
  const grid = document.getElementById("grid");
  // What streams comes right after the figures at the top.
  const stats = layout.panels.filter((panel) => panel.kind === "stat");
  const others = layout.panels.filter((panel) => panel.kind !== "stat");
  for (const panel of [...stats, ...layout.feeds, ...others]) grid.append(new Card(panel, layout.currency).node);
  setInterval(() => cards.forEach((card) => card.showFreshness()), 1000);
  await Promise.all(cards.map((card) => card.mount().catch((error) => card.setMark("failed", "failed", String(error)))));
  document.documentElement.dataset.ready = "yes";
}

document.getElementById("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("riskstream-theme", next);
  for (const card of cards) card.drawn?.repaint();
});

start().catch((error) => { health.textContent = error.message; });
