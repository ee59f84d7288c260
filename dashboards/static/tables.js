// Draws stats and plain tables; rows keep their place while their numbers change.
import { element, format } from "./format.js";

const TONES = {
  block: "bad", breach: "bad", refused: "bad", review: "warn", near: "warn", within: "good", approve: "good",
  red: "bad", yellow: "warn", green: "good",
};

export class Stats {
  constructor(host, panel) {
    this.host = element("div", { class: "stats" });
    this.cells = panel.columns.map((column) => {
      const value = element("div", { class: "value", "data-column": column.name }, "–");
      this.host.append(element("div", {}, value, element("div", { class: "label" }, column.label)));
      return [column, value];
    });
    host.append(this.host);
  }

  show(rows) {
    for (const [column, value] of this.cells) {
      const exact = rows[0]?.[column.name];
      value.textContent = format(exact, column.unit);
      value.dataset.exact = exact ?? "";
    }
  }

  repaint() {}
}

export class PlainTable {
  constructor(host, panel, pick) {
    this.panel = panel;
    this.pick = pick;
    const head = element("tr", {}, ...panel.columns.map((column) => element("th", { class: column.unit }, column.label)));
    this.bodyRows = element("tbody");
    host.append(element("table", {}, element("thead", {}, head), this.bodyRows));
  }

  show(rows) {
    this.bodyRows.replaceChildren(...rows.map((row) => this.row(row)));
  }

  row(row) {
    const cells = this.panel.columns.map((column) => {
      const value = row[column.name];
      const bad = (column.name === "breached" && value) || (column.name === "exception" && value);
      const tone = bad ? "bad" : ["decision", "status", "zone"].includes(column.name) ? TONES[value] ?? "" : "";
      const cell = element("td", { class: `${column.unit} ${tone}` }, format(value, column.unit));
      cell.dataset.column = column.name;
      cell.dataset.exact = value ?? "";
      return cell;
    });
    return element("tr", {}, ...cells);
  }

  repaint() {}
}
