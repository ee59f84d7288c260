// Streaming tables: Perspective in the page, fed by the server's tables over a websocket.
import perspective from "/static/vendor/client/dist/cdn/perspective.js";
import "/static/vendor/viewer/dist/cdn/perspective-viewer.js";
import "/static/vendor/viewer-datagrid/dist/cdn/perspective-viewer-datagrid.js";

// As everywhere on the pages: UTC, to the second, whatever the browser's place.
const UTC = {
  format: "custom", timeZone: "UTC", hour12: false, year: "numeric", month: "short", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit",
};

let connection;

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  connection ??= perspective.websocket(`${scheme}://${location.host}/ws`);
  return connection;
}

export function themeName() {
  return document.documentElement.dataset.theme === "dark" ? "Pro Dark" : "Pro Light";
}

export class Pivot {
  constructor(host, feed, pick) {
    this.feed = feed;
    this.viewer = document.createElement("perspective-viewer");
    host.append(this.viewer);
    if (pick && feed.drill) {
      this.viewer.addEventListener("perspective-click", (event) => {
        const key = event.detail?.row?.[feed.drill];
        if (key) pick(String(key));
      });
    }
    this.ready = this.open();
  }

  async open() {
    await this.viewer.load(await connect());
    await this.viewer.restore({
      table: this.feed.name,
      plugin: "Datagrid",
      columns: this.feed.shown,
      sort: this.feed.sort ? [[this.feed.sort, "desc"]] : [],
      columns_config: Object.fromEntries(this.feed.times.map((name) => [name, { date_format: UTC }])),
      theme: themeName(),
      settings: false,
      title: this.feed.title,
    });
  }

  async repaint() {
    await this.ready;
    await this.viewer.restore({ theme: themeName() });
  }
}
