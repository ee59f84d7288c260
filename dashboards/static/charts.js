// Draws a panel's rows with ECharts.
import * as echarts from "/static/vendor/echarts.js";
import { compact, format, timeOf } from "./format.js";

const NAMED = { approve: "#3aa676", review: "#e0a030", block: "#d64545", gross: "#5b8def", net: "#37b0a4" };
const WHEEL = ["#3f7df0", "#e0903a", "#37b0a4", "#b56be0", "#d64545", "#8aa0bd", "#6abf4b", "#e06ba8"];

// A day that begins says which one it is.
const CLOCK = {
  year: "{yyyy}", month: "{MMM} {yyyy}", day: "{d} {MMM}", hour: "{HH}:{mm}", minute: "{HH}:{mm}",
  second: "{HH}:{mm}:{ss}", millisecond: "{HH}:{mm}:{ss}", none: "{HH}:{mm}:{ss}",
};

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { text: of("--text"), soft: of("--soft"), line: of("--line"), card: of("--card"), good: of("--good"), bad: of("--bad") };
}

function axis(paint, more) {
  return {
    axisLabel: { color: paint.soft, fontSize: 11, hideOverlap: true },
    axisLine: { lineStyle: { color: paint.line } },
    axisTick: { show: false },
    splitLine: { lineStyle: { color: paint.line } },
    ...more,
  };
}

export class Chart {
  constructor(host, panel) {
    this.panel = panel;
    this.chart = echarts.init(host, null, { renderer: "canvas" });
    new ResizeObserver(() => {
      this.chart.resize();
      this.repaint();
    }).observe(host);
  }

  show(rows) {
    this.rows = rows;
    this.chart.setOption(this.option(rows), { notMerge: true });
  }

  repaint() {
    if (this.rows) this.show(this.rows);
  }

  option(rows) {
    const panel = this.panel;
    const paint = colours();
    const unit = panel.columns.find((column) => column.name === panel.y[0]).unit;
    const temporal = panel.columns.find((column) => column.name === panel.x).unit === "time";
    const base = {
      animation: false,
      textStyle: { fontFamily: "inherit" },
      grid: { left: 8, right: 14, top: 26, bottom: 6, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      legend: { top: 0, right: 8, itemWidth: 10, itemHeight: 8, textStyle: { color: paint.soft, fontSize: 11 } },
      tooltip: {
        trigger: "axis", confine: true, backgroundColor: paint.card, borderColor: paint.line,
        textStyle: { color: paint.text, fontSize: 12 },
        valueFormatter: (value) => format(Array.isArray(value) ? value.at(-1) : value, unit),
      },
    };
    const yAxis = axis(paint, {
      type: panel.logarithmic ? "log" : "value", scale: panel.kind === "lines" || panel.kind === "candles",
      axisLabel: { color: paint.soft, fontSize: 11, formatter: (value) => (unit === "money" ? compact(value) : format(value, unit)) },
    });
    if (panel.kind === "candles") return this.candles(base, yAxis, paint, rows);
    if (panel.kind === "backtest") return this.backtest(base, yAxis, paint, rows);
    if (temporal) return { ...base, useUTC: true, xAxis: this.clock(paint), yAxis, series: this.series(rows, temporal) };
    const names = rows.map((row) => String(row[panel.x]));
    const xAxis = axis(paint, { type: "category", data: names, splitLine: { show: false } });
    const lies = panel.columns.find((column) => column.name === panel.x).unit === "text" && !this.fits(names);
    if (lies) return this.lying(base, xAxis, yAxis, rows);
    return { ...base, xAxis, yAxis, series: this.series(rows, temporal) };
  }

  clock(paint) {
    return axis(paint, { type: "time", splitLine: { show: false }, axisLabel: { color: paint.soft, fontSize: 11, hideOverlap: true, formatter: CLOCK } });
  }

  fits(names) {
    const room = (this.chart.getWidth() * 0.85) / Math.max(names.length, 1);
    return Math.max(0, ...names.map((name) => name.length)) * 6.5 < room;
  }

  // A bar without its name says nothing: where names have no room below, the bars lie.
  lying(base, xAxis, yAxis, rows) {
    const label = { ...xAxis.axisLabel, hideOverlap: false, interval: 0, width: this.chart.getWidth() * 0.4, overflow: "truncate" };
    return {
      ...base,
      xAxis: { ...yAxis, axisLabel: { ...yAxis.axisLabel, hideOverlap: true }, splitNumber: 3 },
      yAxis: { ...xAxis, inverse: true, axisLabel: label },
      series: this.series(rows, false),
    };
  }

  series(rows, temporal) {
    const panel = this.panel;
    const label = (name) => panel.columns.find((column) => column.name === name)?.label ?? name;
    const groups = panel.by
      ? [...new Set(rows.map((row) => row[panel.by]))].map((group) => [group, panel.y[0], rows.filter((row) => row[panel.by] === group)])
      : panel.y.map((name) => [label(name), name, rows]);
    return groups.map(([name, column, own], at) => ({
      name,
      type: panel.kind === "bars" ? "bar" : "line",
      stack: panel.stacked ? "all" : undefined,
      showSymbol: own.length < 3,
      lineStyle: { width: 1.6 },
      barMaxWidth: 26,
      itemStyle: { color: NAMED[column] ?? WHEEL[at % WHEEL.length] },
      // Nothing is nothing on a logarithmic axis, not a bar down to minus infinity.
      data: own.map((row) => {
        const value = panel.logarithmic && !(row[column] > 0) ? null : row[column];
        return temporal ? [timeOf(row[panel.x]), value] : value;
      }),
    }));
  }

  candles(base, yAxis, paint, rows) {
    const times = rows.map((row) => format(row.time, "time").slice(5, 19));
    return {
      ...base,
      legend: { ...base.legend, data: ["Candles", "Mean of 20", "VWAP"] },
      tooltip: { ...base.tooltip, axisPointer: { type: "cross" }, valueFormatter: undefined },
      grid: [
        { left: 8, right: 14, top: 26, bottom: "27%", outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
        { left: 8, right: 14, top: "78%", bottom: 6, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      ],
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      xAxis: [
        axis(paint, { type: "category", data: times, axisLabel: { show: false } }),
        axis(paint, { type: "category", data: times, gridIndex: 1 }),
      ],
      yAxis: [
        { ...yAxis, axisLabel: { ...yAxis.axisLabel, formatter: (value) => format(value, "number") } },
        axis(paint, { type: "value", gridIndex: 1, splitNumber: 1, splitLine: { show: false }, axisLabel: { show: false } }),
      ],
      series: [
        {
          name: "Candles", type: "candlestick", data: rows.map((row) => [row.open, row.close, row.low, row.high]),
          itemStyle: { color: paint.good, color0: paint.bad, borderColor: paint.good, borderColor0: paint.bad },
        },
        { name: "Mean of 20", type: "line", showSymbol: false, lineStyle: { width: 1.2 }, itemStyle: { color: WHEEL[0] }, data: rows.map((row) => row.moving_average) },
        { name: "VWAP", type: "line", showSymbol: false, lineStyle: { width: 1, type: "dotted" }, itemStyle: { color: WHEEL[1] }, data: rows.map((row) => row.vwap) },
        { name: "Volume", type: "bar", xAxisIndex: 1, yAxisIndex: 1, itemStyle: { color: WHEEL[5] }, data: rows.map((row) => row.volume) },
      ],
    };
  }

  backtest(base, yAxis, paint, rows) {
    return {
      ...base,
      useUTC: true,
      xAxis: this.clock(paint),
      yAxis,
      series: [
        {
          name: "P&L", type: "bar", barMaxWidth: 6,
          data: rows.map((row) => ({ value: [timeOf(row.time), row.pnl], itemStyle: { color: row.exception ? paint.bad : WHEEL[5] } })),
        },
        { name: "Forecast loss", type: "line", step: "middle", showSymbol: false, lineStyle: { width: 1.4 }, itemStyle: { color: WHEEL[1] }, data: rows.map((row) => [timeOf(row.time), -row.forecast]) },
      ],
    };
  }
}
