// Numbers and times as people read them. Times are UTC everywhere.
const plain = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const money = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 });
const fine = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 5 });

export function timeOf(value) {
  if (value === null || value === undefined) return NaN;
  return typeof value === "number" ? value : Date.parse(value.replace(" ", "T") + "Z");
}

export function format(value, unit) {
  if (value === null || value === undefined || value === "") return "–";
  switch (unit) {
    case "count": return plain.format(value);
    case "rate": return value >= 100 ? plain.format(value) : fine.format(value);
    case "ms": return value >= 10000 ? `${fine.format(value / 1000)} s` : `${plain.format(value)} ms`;
    case "share": return `${Math.abs(value) < 10 ? (value * 100).toFixed(2) : plain.format(value * 100)} %`;
    case "ratio": return `${money.format(value)} ×`;
    case "probability": return value < 0.001 ? "< 0.001" : value.toFixed(3);
    case "money": return Math.abs(value) >= 1e9 ? short.format(value) : Math.abs(value) >= 1e5 ? plain.format(value) : money.format(value);
    case "number": return fine.format(value);
    case "time": {
      const at = timeOf(value);
      return Number.isNaN(at) ? "–" : new Date(at).toISOString().replace("T", " ").slice(0, 19);
    }
    default: return value === true ? "yes" : value === false ? "no" : String(value);
  }
}

// How long a bar is, as people say it.
export function duration(ms) {
  const [size, unit] = [[86400000, "d"], [3600000, "h"], [60000, "min"], [1000, "s"], [1, "ms"]].find(([one]) => ms % one === 0);
  return `${ms / size} ${unit}`;
}

// Money on an axis, where there is little room and the numbers are round.
export function compact(value) {
  return short.format(value);
}

export function age(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 100) return `${seconds} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 200000) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  // Text is always text: names come from events, and events come from anywhere.
  made.append(...children);
  return made;
}
