"use strict";
(() => {
	const svg = new Set(["svg", "rect", "g", "line", "circle"]);
	// h makes an element. Texts are always text: names come from strangers.
	const h = (tag, attributes, ...children) => {
		const e = svg.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
		for (const [name, value] of Object.entries(attributes || {})) {
			if (value !== undefined) e.setAttribute(name, value);
		}
		e.append(...children);
		return e;
	};
	const svgTitle = (text) => {
		const e = document.createElementNS("http://www.w3.org/2000/svg", "title");
		e.append(text);
		return e;
	};

	// The same words as in words.go.
	const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
	const plural = (n, one, many) => n === 1 ? "1 " + one : count(n) + " " + many;
	const bytes = (n) => {
		if (n < 1024) return n + " B";
		let unit = 0, size = 1024;
		for (; n / size >= 1024 && unit < 4; unit++) size *= 1024;
		const whole = Math.floor(n / size);
		return whole + "." + Math.floor((n - whole * size) * 10 / size) + " " + "KMGTP"[unit] + "iB";
	};
	const took = (micros) => {
		const ms = Math.floor(micros / 1000);
		if (ms < 1) return "< 1 ms";
		if (ms < 1000) return ms + " ms";
		if (ms < 60000) return Math.floor(ms / 1000) + "." + Math.floor(ms % 1000 / 100) + " s";
		return Math.floor(ms / 60000) + " min " + String(Math.floor(ms % 60000 / 1000)).padStart(2, "0") + " s";
	};
	const ratio = (part, whole) => whole === 0 ? "–" : share(part, whole);
	const share = (part, whole) => (whole <= 0 ? 100 : Math.floor(part * 100 / whole)) + " %";
	const clock = (t) => t.slice(11, 19);
	const stamp = (t) => t.slice(0, 10) + " " + t.slice(11, 19) + " UTC";
	const short = (digest) => {
		const i = digest.indexOf(":"), hex = [...digest.slice(i + 1)];
		return i >= 0 && hex.length > 12 ? digest.slice(0, i) + ":" + hex.slice(0, 12).join("") : digest;
	};
	const registry = (account = "", region = "") => account || region ? ("Registry " + account + " " + region).trim() : "This registry";

	const tiles = (s) => {
		const t = s.totals, answered = t.requests - t.failed;
		return [
			["Hit ratio", ratio(t.stored, answered), count(t.stored) + " of " + plural(answered, "answer", "answers") + " from the Store, " + count(t.shared) + " shared a fetch"],
			["Requests", count(t.requests), count(t.heads) + " of them HEAD"],
			["Upstream requests", count(t.upstream), "for " + plural(t.fetches, "fetch", "fetches")],
			["Sent", bytes(t.sent), bytes(t.bytes) + " if read whole, " + bytes(t.fetchedBytes) + " fetched"],
			["Running downloads", count(t.running), plural(t.readers, "reader", "readers")],
			["Failed requests", count(t.failed), plural(t.failedFetches, "failed fetch", "failed fetches") + ", " + plural(t.storeFailures, "failure of the Store", "failures of the Store")],
			["Warnings", count(t.warnings), count(t.anonymous) + " without credentials, " + plural(t.wrongDigests, "wrong digest", "wrong digests")],
		].map(([name, value, note]) => h("div", null, h("dt", null, name), h("dd", null, value), h("dd", null, note)));
	};

	const none = (s, text) => s.filter ? "Nothing of such a repository." : text;
	const lingers = (d) => d.readers === 0 && !d.part && (d.size < 0 || d.written < d.size);
	const readers = (d) => {
		if (lingers(d)) return "its readers have left";
		let text = plural(d.readers, "reader", "readers");
		d.places.slice(0, 7).forEach((p, i) => {
			text += i === 6 ? ", …" : (i === 0 ? " at " : ", ") + bytes(p.at) + (p.readers > 1 ? " ×" + count(p.readers) : "");
		});
		return text;
	};
	const facts = (d) => [
		d.size >= 0 ? bytes(d.written) + " of " + bytes(d.size) + " (" + share(d.written, d.size) + ")" : bytes(d.written) + " of unknown size",
		d.size >= 0 && d.written >= d.size ? "complete" : bytes(d.rate) + "/s",
		...d.connections > 1 ? ["over " + count(d.connections) + " connections"] : [],
		...d.ahead > 0 ? [bytes(d.ahead) + " ahead of their turn"] : [],
		...d.retries > 0 ? ["asked for the rest " + plural(d.retries, "time", "times")] : [], readers(d), "from " + d.upstream, "since " + clock(d.began),
		...d.part ? ["for an import"] : [], ...d.account ? [registry(d.account, d.region)] : [],
	];
	const left = (d, at) => {
		if (d.size <= 0) return "0%";
		const n = Math.floor(Math.min(at, d.size) * 1000 / d.size);
		return Math.floor(n / 10) + "." + n % 10 + "%";
	};
	const pin = (d, p) => {
		const x = left(d, p.at);
		return h("g", { class: "reader" }, svgTitle(plural(p.readers, "reader", "readers") + " at " + bytes(p.at)),
			h("line", { x1: x, x2: x, y1: 6, y2: 28 }), h("circle", { cx: x, cy: 6, r: 3 + String(p.readers).length }));
	};
	const download = (d) => {
		const known = d.size >= 0, all = facts(d);
		return h("li", null, h("h3", null, d.repo + " ", h("code", { title: d.digest }, short(d.digest))),
			h("div", {
				class: "bar", role: "progressbar", "aria-label": d.repo + " " + short(d.digest), "aria-valuetext": all[0],
				"aria-valuemin": known ? 0 : undefined, "aria-valuemax": known ? d.size : undefined, "aria-valuenow": known ? d.written : undefined,
			}, h("svg", { "aria-hidden": "true", focusable: "false", width: "100%", height: 28 },
				h("rect", { class: "track", y: 12, width: "100%", height: 16, rx: 3 }), h("rect", { class: "ahead", y: 12, width: left(d, d.written), height: 16, rx: 3 }),
				h("rect", { class: "done", y: 12, width: left(d, d.written - (d.ahead || 0)), height: 16, rx: 3 }),
				...d.places.map((p) => pin(d, p)))),
			h("p", null, ...all.flatMap((text) => [h("span", null, text), " "])));
	};
	const more = (n) => n ? [h("p", null, plural(n, "more is", "more are") + " not shown.")] : [];
	const downloads = (s) => s.downloads.length ?
		[h("ul", { class: "downloads" }, ...s.downloads.map(download)), ...more(s.moreDownloads)] :
		[h("p", { class: "none" }, none(s, "Nothing is on its way."))];

	const awaits = (p) => p.lingers ? "fetch " + (p.object || "other") : p.checks ? "check stored tags" : p.image ? "import image" : (p.object || "other") + " requests";
	const awaitsOf = (p) => p.repo ? name(p) : p.rule || "";
	const awaitsFor = (p) => p.lingers ? "its clients have left" : p.image ? "it is not whole" : (p.upstream || "") + ": " + (p.status || "failed");
	const awaitsTry = (p) => p.lingers ? "" : "in " + took(p.micros);
	const pending = (s) => s.pending.length ? [h("table", null,
		h("thead", null, h("tr", null, ...["What", "Of", "Why"].map((text) => h("th", { scope: "col" }, text)), h("th", { scope: "col", class: "n" }, "Next try"))),
		h("tbody", null, ...s.pending.map((p) => row(awaits(p),
			h("td", null, awaitsOf(p), ...p.account || p.region ? [" ", h("span", { class: "none" }, registry(p.account, p.region))] : []),
			h("td", null, awaitsFor(p)), n(awaitsTry(p)))))), ...more(s.morePending)] :
		[h("p", { class: "none" }, none(s, "Nothing waits."))];

	// A chart has a column for each bucket, made of its series: piled up, or one before the
	// other, which is narrower.
	const chart = (title, s, piled, text, series) => {
		const all = s.chart.buckets, wide = 10, high = 60;
		const top = Math.max(1, ...all.map((b) => Math.max(piled ? series.reduce((sum, [key]) => sum + b[key], 0) : 0, ...series.map(([key]) => b[key]))));
		const column = (b, i) => {
			let below = 0;
			return series.filter(([key]) => b[key] > 0).map(([key, kind], at) => {
				const height = Math.max(b[key] / top * high, 1), inset = piled ? 1 : 1 + 3 * at;
				const y = high - height - below;
				if (piled) below += height;
				return h("rect", { class: kind, x: i * wide + inset, y: y.toFixed(1), width: wide - 2 * inset, height: height.toFixed(1) });
			});
		};
		const legend = series.map(([key, kind, label]) => [kind, text(all.reduce((sum, b) => sum + b[key], 0)) + " " + label]);
		return h("figure", null,
			h("svg", { viewBox: "0 0 " + all.length * wide + " " + high, preserveAspectRatio: "none", role: "img", "aria-label": title + " of the last 5 minutes: " + legend.map(([, label]) => label).join(", ") },
				h("line", { x1: 0, x2: all.length * wide, y1: high, y2: high }), ...all.flatMap(column)),
			h("figcaption", null, h("b", null, title), " ", ...legend.flatMap(([kind, label]) => [h("span", { class: kind }, label), " "]),
				h("span", { class: "top" }, "at most " + text(top) + " in " + s.chart.seconds + " s")));
	};
	const charts = (s) => [
		chart("Answers", s, true, count, [["hits", "hit", "from the Store"], ["shared", "shared", "shared a fetch"], ["fills", "fill", "fetched"], ["failed", "failed", "failed"]]),
		chart("Content", s, false, bytes, [["bytes", "hit", "answered, whole"], ["fetched", "fill", "fetched"]]),
	];

	const row = (head, ...cells) => h("tr", null, h("th", { scope: "row" }, head), ...cells);
	const n = (text) => h("td", { class: "n" }, text);
	const badge = (kind, text) => h("span", { class: "badge " + kind }, text);
	const orNone = (rows, columns, text) => rows.length ? rows : [h("tr", null, h("td", { class: "none", colspan: columns }, text))];

	const answers = (s) => s.answers.map((a) => row(badge(a.source, a.source), n(count(a.manifests)), n(count(a.blobs)), n(count(a.referrers)), n(bytes(a.bytes))));
	const failures = (s) => orNone(s.failures.map((f) => row(badge("failed", f.kind), n(count(f.requests)), n(count(f.fetches)))), 3, "None.");
	const fetches = (s) => orNone(s.fetches.map((f) =>
		row(f.rule, n(count(f.fetched)), n(count(f.failed)), n(count(f.upstream)), n(bytes(f.bytes)), n(took(f.meanMicros)))), 6, "Nothing has been fetched.");

	const ruleTable = (r) => h("table", null,
		h("thead", null, h("tr", null, ...["Prefix", "Upstream", "Upstream prefix", "Credential"].map((text) => h("th", { scope: "col" }, text)))),
		h("tbody", null, ...r.rules.map((one) => row(one.prefix, h("td", null, one.upstream), h("td", null, one.upstreamPrefix || ""), h("td", null, one.credential ? "yes" : "no")))));
	const rulesOf = (r) => [
		h("h3", null, registry(r.account, r.region)),
		...r.error ? [h("p", { class: "error" }, "The rules could not be read: " + r.error)] :
			r.rules.length ? [ruleTable(r), ...more(r.more)] : [h("p", { class: "none" }, "It has no rules.")],
	];
	const rules = (s) => s.registries.length ? s.registries.flatMap(rulesOf) : [h("p", { class: "none" }, "There are no rules to show.")];

	const what = (e) => e.object ? e.kind + " " + e.object + (e.part ? ", part" : "") : e.head ? "check " + e.kind : e.kind;
	const name = (e) => !e.ref ? e.repo : e.ref.includes(":") ? e.repo + "@" + short(e.ref) : e.repo + ":" + e.ref;
	const lines = (e) => [
		...e.digest && e.digest !== e.ref ? [short(e.digest)] : [],
		...e.account || e.region ? [registry(e.account, e.region)] : [],
		...e.error ? [e.error] : [],
		...e.anonymous ? ["The credentials were refused; it went without."] : [],
		...e.wrongDigest ? ["Upstream named another digest."] : [],
		...(e.warnings || []).map((text) => "Warning: " + text),
	];
	const cell = (attributes, ...children) => h("td", { role: "cell", ...attributes }, ...children);
	const event = (e) => h("tr", { role: "row" }, cell(null, clock(e.at)), cell(null, what(e)),
		cell(null, h("b", { title: e.ref || "" }, name(e)), ...lines(e).map((text) => h("span", null, text))),
		cell(null, badge(e.errorKind ? "failed" : e.source || "", e.errorKind || e.source || "")),
		cell({ class: "n", "data-label": "Content" }, bytes(e.bytes)), cell({ class: "n", "data-label": "Upstream" }, count(e.upstream)),
		cell({ class: "n", "data-label": "Took" }, took(e.micros)));
	const events = (s) => s.events.length ? s.events.map(event) :
		[h("tr", { role: "row" }, cell({ class: "none", colspan: 7 }, none(s, "Nothing has happened yet.")))];

	// Each part with what it shows: it is written anew only when that has changed.
	const parts = [
		["tiles", tiles, (s) => s.totals], ["chart", charts, (s) => s.chart], ["downloads", downloads, (s) => [s.downloads, s.moreDownloads, s.filter]],
		["pending", pending, (s) => [s.pending, s.morePending, s.filter]], ["answers", answers, (s) => s.answers], ["failures", failures, (s) => s.failures],
		["fetches", fetches, (s) => s.fetches], ["rules", rules, (s) => s.registries], ["events", events, (s) => [s.events, s.filter]],
	];
	const shown = {};
	const [at, trouble, pause, filter, filtered] = ["at", "trouble", "pause", "filter", "filtered"].map((id) => document.getElementById(id));
	const show = (s) => {
		at.textContent = stamp(s.at);
		filtered.hidden = !s.filter;
		for (const [id, make, of] of parts) {
			const text = JSON.stringify(of(s));
			if (shown[id] !== text) document.getElementById(id).replaceChildren(...make(s));
			shown[id] = text;
		}
	};
	const say = (text) => {
		if (trouble.textContent !== text) trouble.textContent = text;
	};

	let paused = false, asked = 0;
	const load = async () => {
		const number = ++asked;
		try {
			const answer = await fetch("?format=json&repo=" + encodeURIComponent(filter.value), { signal: AbortSignal.timeout(5000) });
			if (!answer.ok) throw new Error(answer.status);
			const s = await answer.json();
			if (number === asked) show(s); // else a later answer is about another filter
			say("");
		} catch {
			say("The server does not answer.");
		}
	};
	const drawn = document.getElementById("chart"); // by nobody yet
	drawn.replaceChildren(...charts({ chart: JSON.parse(drawn.dataset.chart) }));
	pause.hidden = filter.hidden = document.getElementById("charts").hidden = false;
	pause.addEventListener("click", () => {
		paused = !paused;
		pause.textContent = paused ? "Resume" : "Pause";
	});
	filter.addEventListener("input", load);
	const refresh = async () => {
		if (!paused && !document.hidden) await load();
		setTimeout(refresh, 1000);
	};
	setTimeout(refresh, 1000);
})();
