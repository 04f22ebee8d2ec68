"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // One mark's figures, in the panel below its chart.
  const describe = (panel, chart, mark) => {
    const left = make("div");
    left.append(make("p", "path mono", mark.path));
    const big = make("p", "big");
    mark.values.forEach((value, place) => {
      const one = make("span", "", value + " ");
      if (chart.series[place]) one.append(make("small", "", chart.series[place]));
      big.append(one, " ");
    });
    left.append(big);
    const lines = make("ul");
    mark.lines.forEach((line) => lines.append(make("li", "", line)));
    left.append(lines);
    if (mark.channels) left.append(histogram(mark.channels));
    const right = make("div");
    if (mark.shares.length) right.append(make("h3", "", "What it is made of"));
    mark.shares.forEach(([words, percent]) => {
      const share = make("p", "share");
      share.append(make("b", "", Math.round(percent) + " %"), make("span", "", words));
      const bar = make("i");
      bar.style.width = Math.max(percent, 0.5) + "%";
      share.append(bar);
      right.append(share);
    });
    panel.replaceChildren(left, right);
  };

  const histogram = ({ ends, counts }) => {
    const bars = make("div", "histogram");
    const most = Math.max(...counts);
    const total = counts.reduce((sum, value) => sum + value, 0);
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", `${total} channels, from ${ends[0]} to ${ends[1]}`);
    counts.forEach((value) => {
      const bar = make("i");
      bar.style.height = (100 * value) / most + "%";
      bars.append(bar);
    });
    const words = make("p", "histogram-ends");
    words.append(make("span", "", ends[0]), make("span", "", `${total} channels`), make("span", "", ends[1]));
    const whole = make("div", "channels");
    whole.append(make("h3", "", "Its channels, by their own ratio"), bars, words);
    return whole;
  };

  document.querySelectorAll(".plot[data-chart]").forEach((plot) => {
    const chart = charts[plot.dataset.chart];
    const panel = document.getElementById("detail-" + plot.dataset.chart);
    const marks = [...plot.querySelectorAll(".mark")];
    let chosen = -1;
    const choose = (place, focus) => {
      if (place < 0 || place >= marks.length) return;
      if (place !== chosen) {
        if (chosen >= 0) {
          marks[chosen].tabIndex = -1;
          marks[chosen].setAttribute("aria-pressed", "false");
        }
        chosen = place;
        marks[place].tabIndex = 0;
        marks[place].setAttribute("aria-pressed", "true");
        describe(panel, chart, chart.marks[place]);
      }
      if (focus) marks[place].focus();
    };
    marks.forEach((mark, place) => {
      mark.addEventListener("mouseenter", () => choose(place));
      mark.addEventListener("focus", () => choose(place));
      mark.addEventListener("click", () => choose(place));
    });
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: marks.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(to, true);
    });
    choose(Number(plot.dataset.start));
  });

  // Figures sort by value, words by letters; the largest figure comes first.
  const number = (text) => {
    const found = text.replace(/[\s×x]/g, "").match(/^[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : /inf|∞/.test(text) ? Infinity : null;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.querySelectorAll("th")];
    const body = table.tBodies[0];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const words = head.classList.contains("w");
        const order = words ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
        const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const key = (row) => row.cells[column].textContent.trim();
        const compare = (one, other) => {
          if (words) return sign * key(one).localeCompare(key(other), "en", { numeric: true });
          const [a, b] = [number(key(one)), number(key(other))];
          return a === null || b === null ? (a === null) - (b === null) : sign * (a - b);
        };
        body.append(...(next === "none" ? original : [...original].sort(compare)));
      });
    });
  });

  const folds = document.querySelectorAll(".net details");
  const all = (open) => () => folds.forEach((fold) => (fold.open = open));
  document.getElementById("unfold")?.addEventListener("click", all(true));
  document.getElementById("fold")?.addEventListener("click", all(false));

  // What a link points at is unfolded first.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();

  // Copies without asking for permission where the clipboard is closed; else selects the text.
  const copyBySelection = (code) => {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  };
  document.querySelectorAll(".copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      let done = false;
      try {
        await navigator.clipboard.writeText(code.textContent);
        done = true;
      } catch {
        done = copyBySelection(code);
      }
      button.textContent = done ? "Copied" : "Selected";
      document.getElementById("said").textContent = done ? "Copied." : "Selected: press Control and C.";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  });
})();
