// Copies what the browser needs out of node_modules into ../static/vendor; nothing is fetched later.
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const vendor = join(here, "..", "static", "vendor");

// The layout of Perspective's packages is kept: its modules find each other by relative paths.
const files = [
  ["echarts/dist/echarts.esm.min.mjs", "echarts.js"],
  ["echarts/LICENSE", "echarts.LICENSE"],
  ["echarts/NOTICE", "echarts.NOTICE"],
  ["@perspective-dev/client/dist/cdn/perspective.js", "client/dist/cdn/perspective.js"],
  ["@perspective-dev/client/dist/wasm/perspective-js.wasm", "client/dist/wasm/perspective-js.wasm"],
  ["@perspective-dev/viewer/dist/cdn/perspective-viewer.js", "viewer/dist/cdn/perspective-viewer.js"],
  ["@perspective-dev/viewer/dist/wasm/perspective-viewer.wasm", "viewer/dist/wasm/perspective-viewer.wasm"],
  ["@perspective-dev/viewer/dist/css/themes.css", "viewer/dist/css/themes.css"],
  [
    "@perspective-dev/viewer-datagrid/dist/cdn/perspective-viewer-datagrid.js",
    "viewer-datagrid/dist/cdn/perspective-viewer-datagrid.js",
  ],
];

rmSync(vendor, { recursive: true, force: true });
const versions = {};
for (const [from, to] of files) {
  const target = join(vendor, to);
  mkdirSync(dirname(target), { recursive: true });
  cpSync(join(modules, from), target);
  const name = from.startsWith("@") ? from.split("/").slice(0, 2).join("/") : from.split("/")[0];
  versions[name] = JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8")).version;
}
writeFileSync(join(vendor, "versions.json"), JSON.stringify(versions, null, 2) + "\n");
