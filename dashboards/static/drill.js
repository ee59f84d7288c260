// The events behind an alert: its features, and for each the events of its window.
import { element, format } from "./format.js";

const drawer = document.getElementById("drill");

async function get(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

export async function openEvent(id) {
  drawer.hidden = false;
  drawer.replaceChildren(element("p", {}, `Reading ${id} …`));
  try {
    show(await get(`/api/event?id=${encodeURIComponent(id)}`));
  } catch (error) {
    drawer.replaceChildren(head(id), element("p", {}, error.message));
  }
}

function head(title, ...more) {
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", () => { drawer.hidden = true; });
  return element("h2", {}, element("span", { class: "mono" }, title), ...more, close);
}

function show(event) {
  const behind = element("div", { id: "behind" }, element("p", {}, "Choose a feature to see the events behind it."));
  const body = element("tbody");
  for (const feature of event.features) {
    const row = element("tr", feature.has_events ? { class: "pick", tabindex: "0" } : {},
      element("td", { class: "text" }, feature.name),
      element("td", { "data-exact": feature.value ?? "" }, format(feature.value, "number")),
      element("td", { class: "text wrap" }, feature.meaning));
    row.dataset.feature = feature.name;
    if (feature.has_events) {
      const open = () => {
        for (const other of body.children) other.classList.toggle("picked", other === row);
        openFeature(event.event_id, feature.name, behind);
      };
      row.addEventListener("click", open);
      row.addEventListener("keydown", (key) => { if (key.key === "Enter") open(); });
    }
    body.append(row);
  }
  drawer.replaceChildren(
    head(event.event_id, element("span", { class: `badge ${event.decision}` }, event.decision)),
    element("p", {}, `${format(event.event_amount, "money")} ${event.currency} by ${event.customer_id} at ${event.terminal_id}, ${format(event.event_time, "time")} UTC, ${event.channel}`),
    element("p", {}, `Score ${event.score < 0 ? "none" : format(event.score, "number")} by ${event.model_version || "no model"}; reasons: ${event.reasons || "the score alone"}`),
    element("p", { class: "mono" }, `${event.kafka_topic}/${event.kafka_partition}:${event.kafka_offset}, decided ${format(event.decided_at, "time")} UTC`),
    element("h3", {}, "Features"),
    element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {},
      element("th", { class: "text" }, "feature"), element("th", {}, "value"), element("th", { class: "text" }, "meaning"))), body)),
    element("h3", {}, "Events behind the feature"),
    behind,
  );
}

async function openFeature(id, feature, host) {
  host.replaceChildren(element("p", {}, `Reading ${feature} …`));
  try {
    const found = await get(`/api/event/feature?id=${encodeURIComponent(id)}&feature=${encodeURIComponent(feature)}`);
    const columns = [["event_time", "time"], ["event_id", "text"], ["event_amount", "money"], ["decision", "text"], ["score", "probability"], ["label", "text"], ["reasons", "text"]];
    const body = element("tbody", {}, ...found.events.map((event) => element("tr", {},
      ...columns.map(([name, unit]) => element("td", { class: unit === "probability" || unit === "money" ? "" : "text" }, format(event[name], unit))))));
    const headRow = element("tr", {}, ...columns.map(([name, unit]) => element("th", { class: unit === "probability" || unit === "money" ? "" : "text" }, name.replace("_", " "))));
    const note = `${found.entity} ${found.key}, after ${format(found.after_ms, "time")} until ${format(found.until_ms, "time")} UTC: ${format(found.total, "count")} events`;
    host.replaceChildren(
      element("p", { id: "behind-total", "data-exact": found.total }, found.events.length < found.total ? `${note}, the newest ${found.events.length} of them` : note),
      element("div", { class: "scroll" }, element("table", {}, element("thead", {}, headRow), body)));
  } catch (error) {
    host.replaceChildren(element("p", {}, error.message));
  }
}

document.addEventListener("keydown", (key) => { if (key.key === "Escape") drawer.hidden = true; });
