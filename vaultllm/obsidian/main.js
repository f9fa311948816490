"use strict";
/*
 * Vaultllm for Obsidian: ask, search, look at what is related, read, train, forget. No build step: this file is what runs.
 *
 * It talks to `vaultllm watch --serve` on this computer (the port stands in `api.json`, the key in `token`, both in the state
 * folder), and starts the command line for one command where nothing listens. Texts of notes are shown as text, never as HTML.
 *
 * Used of `obsidian`: Plugin (addCommand, addRibbonIcon, addStatusBarItem, addSettingTab, registerView, registerEvent,
 * registerInterval, registerDomEvent, registerObsidianProtocolHandler), Modal (setTitle, contentEl, open, close), SuggestModal
 * (inputEl, setPlaceholder, emptyStateText), ItemView (contentEl, containerEl.isShown), PluginSettingTab, Setting (setName, setDesc,
 * setHeading, addText, addToggle, addButton), Notice (setMessage, hide), MarkdownView (editor, save), Editor (getSelection,
 * getCursor, setCursor, getLine, lastLine, replaceRange, scrollIntoView), Platform, Keymap.isModEvent, FileSystemAdapter (getBasePath),
 * debounce, requestUrl, setIcon, setTooltip; of `app`: workspace (getActiveFile, getActiveViewOfType, getLeaf, getRightLeaf,
 * getLeavesOfType, revealLeaf, onLayoutReady, on: file-open, quit), leaf (openFile, setViewState, view), vault (getFileByPath,
 * adapter.read), metadataCache.getFileCache, fileManager.processFrontMatter, loadLocalStorage, saveLocalStorage; of the page:
 * createFragment, and createEl, createDiv, createSpan, empty, setText, toggleClass of elements.
 * Used of Node, on a computer only: fs (readFileSync, existsSync), os.homedir, path.join, child_process.spawn, process (env, platform, kill).
 */
const {
  FileSystemAdapter, ItemView, Keymap, MarkdownView, Modal, Notice, Platform, Plugin, PluginSettingTab, Setting, SuggestModal, debounce,
  requestUrl, setIcon, setTooltip,
} = require("obsidian");

const RELATED = "vaultllm-related";
const ICON = "brain-circuit";
const KEPT = "vaultllm"; // what is kept on this computer: paths, which on another one are others
const QUESTION = "> [!ask] ";
const EVERY = 30_000; // milliseconds between two looks at how it stands
const RARELY = 10; // so many of them, where each look starts a program
const TYPED = 250; // milliseconds after the last key
const HITS = 10;

/** What went wrong, in words for the user. */
class Wrong extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

// -- pure: what is asked, and how

/** A question with what it is about quoted below it. */
function withSelection(question, selection) {
  const asked = question.trim();
  const quoted = selection.trim();
  if (!asked || !quoted) return asked || quoted;
  return `${asked}\n\n${quoted.replace(/^/gm, "> ")}`;
}

/** What can be asked: over HTTP [method, path, body], of the command line [arguments, standard input]; `looks`: it changes nothing. */
const VERBS = {
  status: { http: () => ["GET", "/status"], cli: () => [["status"]], looks: true },
  search: { http: (asked) => ["POST", "/search", asked], cli: ({ query, k }) => [["search", "-k", `${k}`, "-"], oneLine(query)], looks: true },
  related: {
    http: ({ path, k }) => ["GET", `/related?path=${encodeURIComponent(path)}&k=${k}`], cli: ({ path, k }) => [["related", "-k", `${k}`, "--", path]], looks: true,
  },
  ask: { http: (asked) => ["POST", "/ask", asked], cli: ({ question, note }) => [["ask", ...(note ? [`--note=${note}`] : []), "-"], question] },
  reply: { http: (asked) => ["POST", "/reply", asked], cli: ({ path }) => [["reply", "--", path]] },
  ingest: { http: () => ["POST", "/ingest", {}], cli: () => [["ingest"]] },
  retrain: { http: () => ["POST", "/retrain", {}], cli: () => [["retrain"]] },
  training: { http: () => ["GET", "/retrain"], looks: true },
  "stop-training": { http: () => ["DELETE", "/retrain"] },
  forget: { http: (asked) => ["POST", "/forget", asked], cli: ({ what, dry_run }) => [["forget", dry_run ? "--dry-run" : "--yes", "--", what]] },
  rate: { http: (asked) => ["POST", "/rate", asked], cli: ({ answer, rating }) => [["rate", "--", answer, rating]] },
  rollback: { http: () => ["POST", "/rollback", {}], cli: () => [["rollback"]] },
  config: { cli: () => [["config"]], looks: true },
};

function oneLine(text) {
  return text.split(/\s+/).join(" ").trim();
}

/** The arguments of the command line for a verb, and what it reads from its standard input. */
function commandLine(verb, body, vault, state = "") {
  const [words, input = ""] = VERBS[verb].cli(body);
  return { args: ["--vault", vault, ...(state ? ["--state", state] : []), "--json", "--progress", ...words], input };
}

/** What the command line complained of: its last line of complaint, without its name. */
function complaint(stderr, code) {
  const lines = stderr.split("\n").filter((line) => line.trim() && !line.startsWith("{"));
  const last = lines.filter((line) => line.startsWith("vaultllm: ")).pop() || lines.pop() || `it ended with code ${code}`;
  const [, kind = "", message] = /^(?:vaultllm: )?([EW]-[A-Z-]+ )?(.*)$/.exec(last.trim());
  return new Wrong(message, kind.trim());
}

/** Where the API listens, from `api.json` and `token`; null unless it is this computer alone that is meant. */
function placeOf(about, token) {
  const key = token.split("\n").find((line) => line.trim() && !line.startsWith("#"));
  if (!key || !Number.isInteger(about.port) || about.port < 1 || about.port > 65535) return null;
  if (!["127.0.0.1", "localhost", "0.0.0.0"].includes(about.host)) return null;
  return { pid: about.pid, url: `http://127.0.0.1:${about.port}/api/vaultllm`, key: key.trim() };
}

const ACTIONS = ["ask", "search", "reply", "ingest", "status"];

/** What `obsidian://vaultllm/ACTION?…` or `obsidian://vaultllm?action=ACTION&…` wants. Throws Wrong for what a link may not start. */
function wanted(data) {
  const named = data.action && data.action !== "vaultllm" ? data.action : data.do || "";
  const action = named.replace(/^vaultllm\//, "");
  if (!ACTIONS.includes(action)) throw new Wrong(`A link may start ${ACTIONS.join(", ")}; not “${action.slice(0, 40)}”.`);
  const text = data.question || data.query || "";
  return { action, text: text.slice(0, 4_000), path: data.path || data.file || "" };
}

/** A text in pieces, each [piece, whether it is a word of the query]: the stretch where most of them stand. */
function marked(text, query, most = 320) {
  const words = query.toLowerCase().match(/[\p{L}\p{M}\p{N}]{2,}/gu) || [];
  const long = words.filter((word) => word.length > 3); // `the` and `of` say nothing beside others
  const roots = (long.length ? long : words).map((word) => word.slice(0, Math.max(4, Math.ceil(word.length * 0.7))));
  const is = (word) => roots.some((root) => word.toLowerCase().startsWith(root));
  const flat = oneLine(text);
  const at = [...flat.matchAll(/[\p{L}\p{M}\p{N}]+/gu)].filter((found) => is(found[0])).map((found) => found.index);
  const inside = (start) => at.filter((place) => place >= start && place < start + most).length;
  const best = at.reduce((found, place) => (inside(place) > inside(found) ? place : found), at[0] || 0);
  const start = best < most / 2 ? 0 : flat.lastIndexOf(" ", best - 40) + 1;
  const shown = flat.slice(start, start + most);
  const pieces = shown.split(/([\p{L}\p{M}\p{N}]+)/u).map((piece) => [piece, /[\p{L}\p{N}]/u.test(piece) && is(piece)]);
  return [...(start ? [["…", false]] : []), ...pieces.filter(([piece]) => piece), ...(start + most < flat.length ? [["…", false]] : [])];
}

/** Where a hit stands, as a person reads it. */
function titleOf(hit) {
  return [...new Set([hit.title, ...hit.headings])].join(" › ");
}

/** `1 note`, `2 notes`. */
function counted(count, what) {
  return `${count} ${count === 1 ? what.replace(/s$/, "") : what}`;
}

function percent(share) {
  return `${Math.round(100 * (share || 0))} %`;
}

/** Where long work stands: phase, share, loss, minutes left. */
function progressText({ phase, done, loss, seconds_left: left }) {
  const parts = [`${phase} ${percent(done)}`];
  if (loss !== undefined && loss !== null) parts.push(`loss ${loss.toFixed(2)}`);
  if (left !== undefined && left !== null) parts.push(left < 90 ? `${Math.round(left)} s left` : `${Math.round(left / 60)} min left`);
  return parts.join(", ");
}

/** What a retraining came to. */
function trainedText(result) {
  if (result.status === "nothing new") return `Nothing to learn yet: ${result.new_scenes} new scenes, training starts at ${result.min_new}.`;
  if (!result.metrics) return `The training waits (${result.status}): ${result.reason}. The next one goes on there.`;
  return `Training ${result.run} ${result.promoted ? "answers from now on" : "does not answer"}: ${result.reason}`;
}

/** How many notes wait to be read. */
function behind(status) {
  return Object.values(status.behind || {}).reduce((sum, count) => sum + count, 0);
}

/** The status bar's few words. */
function barText(status, listens) {
  if (status.training && status.training.state === "running") return `Vaultllm: training ${percent(status.training.done)}`;
  if (behind(status)) return `Vaultllm: ${behind(status)} behind`;
  return listens || (status.daemon && status.daemon.alive) ? "Vaultllm: ready" : "Vaultllm: asleep";
}

/** The status in plain words, a line each. */
function statusLines(status, listens) {
  const { daemon, training, memory, dataset, scenes } = status;
  const waiting = Object.entries(status.behind || {}).filter(([, count]) => count);
  const last = daemon && daemon.last;
  const did = last ? `, last at ${last.at.slice(0, 16).replace("T", " ")}: ${last.message || `${last.read || 0} read, ${last.removed || 0} removed`}` : "";
  const lines = [
    daemon && daemon.alive
      ? `A watcher is alive (process ${daemon.pid}, ${daemon.doing}${did}).`
      : daemon
        ? `The watcher (process ${daemon.pid}) has been silent for ${Math.round(daemon.silent / 60)} minutes; start it again.`
        : "Nobody watches this vault: what changes is read when you ask for it.",
    listens ? "The plugin talks to a server that runs." : "No server runs: each command starts vaultllm anew, which is slower.",
    status.behind
      ? waiting.length
        ? `Waiting to be read: ${waiting.map(([what, count]) => `${count} ${what}`).join(", ")}.`
        : "Every note is read."
      : "The vault cannot be listed now; is its disk there?",
    `${counted(status.notes, "notes")}, ${counted(scenes.total, "scenes")}, ${counted(memory.passages, "passages")} in the memory.`,
    status.current ? `Training ${status.current} answers.` : "No training answers: memory answers alone, or the base model.",
    `New since the last training: ${counted(dataset.new_scenes, "scenes")}; the next one starts at ${dataset.min_new}.`,
  ];
  if (training && training.state === "running") lines.push(`A training runs: ${progressText(training)}.`);
  if (training && training.state === "failed") lines.push(`The last training: ${training.error.message}`);
  if (status.forgotten.unfinished) lines.push(`${status.forgotten.unfinished} notes were not forgotten to the end: forget them again.`);
  return lines;
}

/** What forgetting takes away, a line each. */
function forgetLines(result) {
  const gone = Object.entries(result.removed).filter(([, count]) => count);
  const lines = [gone.length ? gone.map(([what, count]) => counted(count, what)).join(", ") : "Nothing was derived from it."];
  for (const run of result.runs) lines.push(`Training ${run.id} has seen it and is taken out of use${run.answered ? ": it answers now" : ""}.`);
  if (result.bases.length) lines.push(`${result.bases.length} base models have read it and are taken out of use.`);
  if (result.notes_that_quote_it.length) lines.push(`Notes of yours that quote it stay: ${result.notes_that_quote_it.join(", ")}`);
  if (result.said_elsewhere.length) lines.push(`${result.said_elsewhere.length} other notes say some of it too; they are not forgotten.`);
  return lines;
}

/** The settings that a person wonders about, each [name, value]. */
function shownSettings({ settings, schedule }) {
  const { train, answers } = settings;
  const nightly = schedule ? `every day at ${schedule.at} (${schedule.kind})` : "not by itself; in a terminal: vaultllm schedule install";
  return [
    ["Model", train.base === "micro" ? "micro: a small one, trained here from nothing" : train.base],
    ["Training", `${counted(train.minutes, "minutes")} at most, from ${counted(train.min_new, "new scenes")} on${train.only_on_ac ? ", on mains power only" : ""}`],
    ["Schedule", nightly],
    ["Answers go to", answers.folder],
    ["Reports go to", answers.reports],
  ];
}

/** Where `> [!ask] ` goes: on a line of its own, apart from the text around it. Returns {text, from, to, cursor}. */
function questionAt(line, here, before, after) {
  const empty = !here.trim();
  const gap = empty ? (before.trim() ? "\n" : "") : "\n\n";
  const from = { line, ch: empty ? 0 : here.length };
  const text = gap + QUESTION + (after.trim() ? "\n" : "");
  return { text, from, to: { line, ch: here.length }, cursor: { line: line + gap.length, ch: QUESTION.length } };
}

/** Where installers put commands; a program started from the desktop knows few of these folders by itself. */
function candidates(env, home, windows) {
  const own = windows
    ? [`${home}\\.local\\bin`, `${home}\\pipx\\venvs\\vaultllm\\Scripts`, `${env.APPDATA || home}\\uv\\tools\\vaultllm\\Scripts`]
    : [
        `${home}/.local/bin`,
        "/opt/homebrew/bin",
        "/usr/local/bin",
        `${home}/.local/pipx/venvs/vaultllm/bin`,
        `${home}/.local/share/pipx/venvs/vaultllm/bin`,
        `${home}/.local/share/uv/tools/vaultllm/bin`,
      ];
  const folders = [...(env.PATH || env.Path || "").split(windows ? ";" : ":"), ...own].filter(Boolean);
  return [...new Set(folders.map((folder) => (windows ? `${folder}\\vaultllm.exe` : `${folder}/vaultllm`)))];
}

// -- transport

/** Node's modules: only on a computer, and only when they are needed. Throws Wrong on a phone. */
function node() {
  if (!Platform.isDesktop) throw new Wrong("Vaultllm runs on a computer, not on a phone.");
  return { fs: require("fs"), os: require("os"), path: require("path"), spawn: require("child_process").spawn, process: window.process };
}

const pause = (milliseconds) => new Promise((done) => window.setTimeout(done, milliseconds));

/** The way to vaultllm: over HTTP to the one that runs, else through its command line. */
class Link {
  constructor(plugin) {
    this.plugin = plugin;
    this.children = new Set();
    this.roles = {}; // the children that train and watch, if they are ours
    this.looking = null; // for the state folder
  }

  get vault() {
    const { adapter } = this.plugin.app.vault;
    return adapter instanceof FileSystemAdapter ? adapter.getBasePath() : "";
  }

  /** Ask for one of VERBS; its result as `--json` has it. `told` hears where long work stands. Throws Wrong. */
  async call(verb, body = {}, told = () => {}) {
    const place = VERBS[verb].http ? await this.place() : null;
    if (place) {
      try {
        return await this.http(place, verb, body);
      } catch (error) {
        if (error instanceof Wrong) throw error;
        // Nobody there: the command line does it. Cut off in the middle: it may be done, and is not done twice.
        if (!VERBS[verb].looks && !/REFUSED/i.test(error.message)) throw new Wrong(`The connection broke (${error.message}); look at the status before you try again.`);
      }
    }
    return this.command(verb, body, told);
  }

  async http(place, verb, body = {}) {
    const [method, path, sent] = VERBS[verb].http(body);
    const asked = { url: place.url + path, method, headers: { Authorization: `Bearer ${place.key}` }, throw: false };
    if (sent) Object.assign(asked, { contentType: "application/json", body: JSON.stringify(sent) });
    const response = await requestUrl(asked);
    const result = parsed(response.text);
    if (response.status >= 400) throw new Wrong(result.error?.message || `the server says ${response.status}`, result.error?.code);
    return result;
  }

  async command(verb, body, told) {
    if (!VERBS[verb].cli) throw new Wrong("The server of vaultllm is gone; look at the status.");
    const { args, input } = commandLine(verb, body, this.vault, this.plugin.kept.state);
    const words = await this.program();
    return parsed(await this.run([...words, ...args], { input, told, role: verb }));
  }

  /** Start a program with these words, no shell between; its standard output. Throws Wrong with what it complains of. */
  run([program, ...args], { input = "", told = () => {}, cwd = this.vault, role = "", patience = 0 } = {}) {
    const { spawn, process } = node();
    return new Promise((resolve, reject) => {
      const child = spawn(program, args, { cwd, env: { ...process.env, PYTHONUTF8: "1" }, windowsHide: true });
      const timer = patience ? window.setTimeout(() => this.end(child), patience) : 0;
      let out = "";
      let err = "";
      const over = () => {
        window.clearTimeout(timer);
        this.children.delete(child);
        if (this.roles[role] === child) delete this.roles[role];
      };
      this.children.add(child);
      if (role) this.roles[role] = child;
      child.stdout.setEncoding("utf8").on("data", (piece) => (out += role === "watch" ? "" : piece)); // a log that nobody reads
      child.stderr.setEncoding("utf8").on("data", (piece) => {
        const lines = (err + piece).split("\n");
        for (const line of lines.slice(0, -1)) if (line.startsWith("{")) told(parsed(line, {}));
        err = lines.filter((line, index) => index === lines.length - 1 || !line.startsWith("{")).join("\n").slice(-20_000);
      });
      child.on("error", (error) => {
        over();
        reject(new Wrong(error.code === "ENOENT" ? `${program} was not found. ${HOW}` : `${program} cannot be started: ${error.message}`));
      });
      child.on("close", (code) => {
        over();
        return code === 0 ? resolve(out) : reject(complaint(err, code));
      });
      child.stdin.on("error", () => {}); // it ended before it read all: its exit code says why
      child.stdin.end(input);
    });
  }

  /** End a child, and on Windows the ones that it started. */
  end(child) {
    const { spawn, process } = node();
    if (process.platform === "win32") spawn("taskkill", ["/pid", `${child.pid}`, "/t", "/f"], { windowsHide: true });
    else child.kill();
  }

  /** End all that we started. */
  close() {
    for (const child of this.children) this.end(child);
  }

  /** Where the API listens, and its key; null when nobody does. */
  async place() {
    const { fs, path, process } = node();
    const folder = await this.state();
    try {
      const read = (name) => fs.readFileSync(path.join(folder, name), "utf8");
      const found = placeOf(JSON.parse(read("api.json")), read("token"));
      if (found) process.kill(found.pid, 0); // throws when there is no such process
      return found;
    } catch {
      return null;
    }
  }

  /** The state folder: as it is set, as it was last time, or as the command line says. */
  async state() {
    const { fs, path } = node();
    const { kept } = this.plugin;
    if (kept.state) return kept.state;
    if (kept.known && fs.existsSync(path.join(kept.known, "vault_id"))) return kept.known;
    this.looking ||= this.command("status", {}).finally(() => (this.looking = null));
    const { state } = await this.looking;
    this.plugin.keep({ known: state });
    return state;
  }

  /** The words that start vaultllm. Throws Wrong when it is not found. */
  async program() {
    const { os } = node();
    const { program } = this.plugin.kept;
    if (program) return [program.replace(/^~(?=[\\/])/, os.homedir())];
    this.found ||= await this.detect();
    if (!this.found) throw new Wrong(`vaultllm was not found on this computer. ${HOW}`);
    return this.found.words;
  }

  /** Look for vaultllm: the one that installed this plugin, the usual folders, then what a terminal would start. {words, version} or null. */
  async detect() {
    const { fs, os, process } = node();
    const windows = process.platform === "win32";
    const tried = candidates(process.env, os.homedir(), windows).map((path) => [path]);
    const installer = await this.plugin.installer();
    for (const words of [...(installer ? [installer] : []), ...tried]) {
      const version = fs.existsSync(words[0]) && (await this.version(words));
      if (version) return { words, version };
    }
    if (windows || !process.env.SHELL) return null;
    const said = await this.run([process.env.SHELL, "-lc", "command -v vaultllm"], { patience: 10_000 }).catch(() => "");
    const words = [said.trim().split("\n").pop()];
    const version = words[0].startsWith("/") && (await this.version(words));
    return version ? { words, version } : null;
  }

  /** What it says of its version; "" when it is no vaultllm. */
  async version(words) {
    const said = await this.run([...words, "--version"], { patience: 30_000 }).catch(() => "");
    return said.startsWith("vaultllm ") ? oneLine(said) : "";
  }

  /** Train, and tell how far it is; {state: done, result} or {state: failed, error}. One that runs already is joined. */
  async retrain(told) {
    let at = await this.call("retrain", {}, told).catch(async (error) => {
      if (error.code !== "E-LOCKED" || !(await this.place())) throw error;
      return { state: "running", phase: "starting" };
    });
    if (!at.state) return { state: "done", result: at }; // the command line comes back when it is over
    while (at.state === "running" && !this.plugin.gone) {
      told(at);
      await pause(1_000);
      at = await this.call("training");
    }
    return at;
  }

  async stopTraining() {
    if (!this.endOf("retrain")) await this.call("stop-training");
  }

  /** End the child that trains or watches for us; false when there is none. */
  endOf(role) {
    const child = this.roles[role];
    if (child) this.end(child);
    return Boolean(child);
  }

  /** Watch the vault and answer other programs, as long as Obsidian runs; not where one does so already. */
  async watch() {
    if (await this.place()) return;
    const { kept } = this.plugin;
    const args = ["--vault", this.vault, ...(kept.state ? ["--state", kept.state] : []), "--json", "watch", "--serve"];
    const cwd = await this.state(); // not the vault: Chroma reads a `.env` of the folder that it starts in
    await this.run([...(await this.program()), ...args], { cwd, role: "watch" }).catch((error) => {
      if (this.plugin.kept.watch && !this.plugin.gone && error.code !== "E-LOCKED") throw error; // locked: somebody else watches
    });
  }
}

const HOW = "Set its path under Settings, Vaultllm.";

/** JSON, or `otherwise`; without that it throws Wrong. */
function parsed(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    if (otherwise) return otherwise;
    throw new Wrong(`vaultllm said what is no JSON: ${text.slice(0, 200)}`);
  }
}

// -- what is shown

/** A notice that can be changed and may have a button. */
function spoken(text, { button = "", act = () => {}, stays = 0 } = {}) {
  let words;
  const content = createFragment((part) => {
    words = part.createSpan({ text });
    if (!button) return;
    part.createEl("button", { text: button, cls: "vaultllm-button" }).addEventListener("click", (event) => {
      event.stopPropagation();
      notice.hide();
      act();
    });
  });
  const notice = new Notice(content, stays);
  return { set: (text) => words.setText(text), hide: () => notice.hide() };
}

/** A hit: where it stands, and the stretch of text with the words marked. */
function showHit(parent, hit, query) {
  parent.addClass("vaultllm-hit");
  parent.createDiv({ cls: "vaultllm-title", text: titleOf(hit) });
  parent.createDiv({ cls: "vaultllm-place", text: `${hit.path}:${hit.lines[0]}${hit.at ? `, ${hit.at.slice(0, 10)}` : ""}` });
  const text = parent.createDiv({ cls: "vaultllm-text" });
  for (const [piece, is] of marked(hit.text, query)) {
    if (is) text.createEl("mark", { text: piece });
    else text.appendText(piece);
  }
}

/** Lets the user write a question; `ask` gets it with the `context` quoted. */
function askModal(app, { title, context = "", question = "", ask }) {
  const modal = new Modal(app);
  modal.setTitle(title);
  if (context) modal.contentEl.createEl("blockquote", { cls: "vaultllm-context", text: context });
  const input = modal.contentEl.createEl("textarea", { cls: "vaultllm-question", attr: { rows: 3, placeholder: "Your question" } });
  input.value = question;
  const done = () => {
    const asked = withSelection(input.value, context);
    if (!asked) return;
    modal.close();
    ask(asked);
  };
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    done();
  });
  new Setting(modal.contentEl).setDesc("Enter asks, shift and enter begins a line.").addButton((button) => button.setButtonText("Ask").setCta().onClick(done));
  modal.onOpen = () => input.focus();
  modal.open();
}

/** Asks whether something shall be done; resolves to the answer. */
function confirmed(app, { title, lines, button, warns = false }) {
  return new Promise((resolve) => {
    const modal = new Modal(app);
    modal.setTitle(title);
    for (const line of lines) modal.contentEl.createEl("p", { text: line });
    modal.onClose = () => resolve(false); // after the button's answer it changes nothing
    const choose = (yes) => () => {
      resolve(yes);
      modal.close();
    };
    new Setting(modal.contentEl)
      .addButton((one) => (warns ? one.setWarning() : one.setCta()).setButtonText(button).onClick(choose(true)))
      .addButton((one) => one.setButtonText("Cancel").onClick(choose(false)));
    modal.open();
  });
}

class SearchModal extends SuggestModal {
  constructor(plugin, query = "") {
    super(plugin.app);
    Object.assign(this, { plugin, first: query, turn: 0 });
    this.setPlaceholder("What do your notes say about…");
    this.emptyStateText = "Nothing in your notes speaks of this.";
  }

  onOpen() {
    super.onOpen();
    if (!this.first) return;
    this.inputEl.value = this.first;
    this.inputEl.dispatchEvent(new Event("input"));
  }

  async getSuggestions(query) {
    const turn = ++this.turn;
    if (!query.trim()) return [];
    await pause(TYPED);
    if (turn !== this.turn) return new Promise(() => {}); // another key: only the last query is answered
    const found = await this.plugin.link.call("search", { query, k: HITS }).catch((error) => this.plugin.wrong(error));
    return turn === this.turn ? found?.hits || [] : new Promise(() => {});
  }

  renderSuggestion(hit, parent) {
    showHit(parent, hit, this.inputEl.value);
  }

  onChooseSuggestion(hit, event) {
    void this.plugin.openNote(hit.path, hit.lines[0], Keymap.isModEvent(event));
  }
}

/** How it stands, in plain words, and what is to mend. */
async function statusModal(plugin) {
  const modal = new Modal(plugin.app);
  modal.setTitle("How it stands");
  const place = modal.contentEl.createDiv({ cls: "vaultllm-status", text: "Looking…" });
  modal.open();
  const status = await plugin.look().catch((error) => error);
  place.empty();
  const say = (text) => place.createEl("p", { text });
  if (status instanceof Error) return void say(status.message);
  statusLines(status, plugin.listens).forEach(say);
  const failed = status.problems.filter((one) => one.code !== "W-COPY").sort((one, other) => one.code.localeCompare(other.code));
  if (failed.length) say(`${counted(failed.length, "notes")} with something to mend:`);
  for (const one of failed.slice(0, 20)) {
    const row = place.createDiv({ cls: "vaultllm-problem" });
    row.createEl("a", { text: one.path }).addEventListener("click", () => {
      modal.close();
      void plugin.openNote(one.path, one.line || 1);
    });
    row.createSpan({ text: ` ${one.message} (${one.code})` });
  }
  if (failed.length > 20) say(`… and ${failed.length - 20} more: vaultllm status`);
}

/** What other notes say of what the open one speaks of. */
class RelatedView extends ItemView {
  constructor(leaf, plugin) {
    super(leaf);
    Object.assign(this, { plugin, turn: 0, path: null });
  }

  getViewType() { return RELATED; }

  getDisplayText() { return "Related scenes"; }

  getIcon() { return ICON; }

  async onOpen() {
    const look = debounce(() => void this.refresh(), TYPED, true);
    this.registerEvent(this.app.workspace.on("file-open", look));
    this.registerEvent(this.app.workspace.on("layout-change", look)); // it may have been hidden until now
    await this.refresh();
  }

  async refresh() {
    const file = this.app.workspace.getActiveFile();
    const path = file ? file.path : "";
    if (path === this.path || !this.containerEl.offsetParent) return;
    const turn = ++this.turn;
    this.path = path;
    const found = path ? await this.plugin.link.call("related", { path, k: HITS }).catch((error) => error) : null;
    if (turn !== this.turn) return;
    this.contentEl.empty();
    const told = found instanceof Error ? found.message : !found ? "No note is open." : found.hits.length ? "" : "No other note speaks of this.";
    if (found instanceof Error) this.path = null; // asked again at the next occasion
    if (told) return void this.contentEl.createEl("p", { cls: "vaultllm-place", text: told });
    for (const hit of found.hits) {
      const row = this.contentEl.createDiv({ attr: { role: "link", tabindex: 0 } });
      showHit(row, hit, file.basename);
      const open = (event) => void this.plugin.openNote(hit.path, hit.lines[0], Keymap.isModEvent(event));
      row.addEventListener("click", open);
      row.addEventListener("keydown", (event) => event.key === "Enter" && open(event));
    }
  }
}

class SettingsTab extends PluginSettingTab {
  constructor(plugin) {
    super(plugin.app, plugin);
    this.plugin = plugin;
    this.icon = ICON;
  }

  display() {
    const { containerEl, plugin } = this;
    containerEl.empty();
    if (!Platform.isDesktop) {
      new Setting(containerEl).setName("On a computer only").setDesc("Here you can write questions into notes; vaultllm on your computer answers them.");
      return;
    }
    let box;
    const program = new Setting(containerEl)
      .setName("Path to vaultllm")
      .setDesc("Empty: looked for in the usual places.")
      .addText((text) => (box = text).setPlaceholder("/home/me/.local/bin/vaultllm").setValue(plugin.kept.program).onChange((value) => plugin.keep({ program: value.trim() })))
      .addButton((button) =>
        button.setButtonText("Detect").onClick(async () => {
          program.setDesc("Looking…");
          const found = await plugin.link.detect();
          program.setDesc(found ? `Found: ${found.words.join(" ")} (${found.version})` : "Not found. Install it, or write its path here.");
          if (!found || found.words.length > 1) return;
          box.setValue(found.words[0]);
          plugin.keep({ program: found.words[0] });
        }),
      );
    new Setting(containerEl)
      .setName("State folder")
      .setDesc("Where vaultllm keeps what it derives from your notes. Empty: where vaultllm itself says.")
      .addText((text) => text.setPlaceholder(plugin.kept.known || "").setValue(plugin.kept.state).onChange((value) => plugin.keep({ state: value.trim() })));
    new Setting(containerEl)
      .setName("Watch the vault while Obsidian runs")
      .setDesc("Starts vaultllm with Obsidian and ends it with it: saved notes are read at once, and questions in notes are answered. Not needed where it runs by itself.")
      .addToggle((toggle) =>
        toggle.setValue(plugin.kept.watch).onChange((value) => {
          plugin.keep({ watch: value });
          if (value) void plugin.startWatching();
          else plugin.link.endOf("watch");
        }),
      );
    new Setting(containerEl).setName("How it is set up").setHeading();
    const shown = containerEl.createDiv();
    const told = new Setting(shown).setDesc("Looking…");
    plugin.link.call("config").then(
      (config) => {
        told.setDesc(`What follows stands in ${config.file}; change it there.`);
        for (const [name, value] of shownSettings(config)) new Setting(shown).setName(name).setDesc(value);
      },
      (error) => void told.setDesc(error.message), // a Setting has `then`: given back, it would be waited for, without end
    );
  }
}

// -- the plugin

module.exports = class VaultllmPlugin extends Plugin {
  async onload() {
    this.gone = false;
    this.listens = false;
    this.training = false;
    this.kept = { program: "", state: "", watch: false, known: "", ...this.app.loadLocalStorage(KEPT) };
    this.link = new Link(this);
    this.addSettingTab(new SettingsTab(this));
    this.addCommand({ id: "insert-question", name: "Insert a question", icon: "message-circle-question", editorCallback: (editor) => insertQuestion(editor) });
    if (!Platform.isDesktop) return;

    this.registerView(RELATED, (leaf) => new RelatedView(leaf, this));
    this.addRibbonIcon(ICON, "Ask your vault", () => this.askSelection());
    this.addCommand({ id: "ask-selection", name: "Ask about the selection", icon: ICON, callback: () => this.askSelection() });
    this.addCommand({ id: "ask-note", name: "Ask about this note", icon: "file-question", checkCallback: this.ofNote((file) => this.askNote(file)) });
    this.addCommand({ id: "reply", name: "Reply here", icon: "message-square-reply", checkCallback: this.ofNote((file) => this.reply(file)) });
    this.addCommand({ id: "search", name: "Search memory", icon: "search", callback: () => new SearchModal(this).open() });
    this.addCommand({ id: "related", name: "Show related scenes", icon: "git-compare", callback: () => this.showRelated() });
    this.addCommand({ id: "ingest", name: "Ingest now", icon: "refresh-cw", callback: () => this.ingest() });
    this.addCommand({ id: "retrain", name: "Retrain now", icon: "graduation-cap", callback: () => this.retrain() });
    this.addCommand({ id: "status", name: "Show status", icon: "activity", callback: () => statusModal(this) });
    const isAnswer = (file) => this.app.metadataCache.getFileCache(file)?.frontmatter?.vaultllm === "answer";
    this.addCommand({ id: "rate-good", name: "Rate this answer as good", icon: "thumbs-up", checkCallback: this.ofNote((file) => this.rate(file, "good"), isAnswer) });
    this.addCommand({ id: "rate-bad", name: "Rate this answer as bad", icon: "thumbs-down", checkCallback: this.ofNote((file) => this.rate(file, "bad"), isAnswer) });
    this.addCommand({ id: "forget", name: "Forget this note", icon: "eraser", checkCallback: this.ofNote((file) => this.forget(file)) });
    this.addCommand({ id: "rollback", name: "Roll back to the training before", icon: "undo-2", callback: () => this.rollback() });
    for (const action of ["vaultllm", ...ACTIONS.map((one) => `vaultllm/${one}`)]) {
      this.registerObsidianProtocolHandler(action, (data) => this.followed(data));
    }

    this.bar = this.addStatusBarItem();
    this.bar.addClass("mod-clickable", "vaultllm-bar");
    setIcon(this.bar.createSpan(), ICON);
    this.words = this.bar.createSpan({ text: "Vaultllm" });
    this.registerDomEvent(this.bar, "click", () => statusModal(this));
    let ticks = 0;
    const tick = () => {
      if (document.visibilityState !== "visible") return;
      if (this.listens || ticks++ % RARELY === 0) void this.refresh();
    };
    this.registerInterval(window.setInterval(tick, EVERY));
    this.registerEvent(this.app.workspace.on("quit", () => this.link.close()));
    this.app.workspace.onLayoutReady(() => {
      if (this.kept.watch) void this.startWatching();
      tick();
    });
  }

  onunload() {
    this.gone = true;
    this.link.close();
  }

  /** Keep something on this computer, for this vault. */
  keep(some) {
    const was = this.kept;
    this.kept = { ...was, ...some };
    if (this.kept.program !== was.program) Object.assign(this.kept, { known: "" });
    this.app.saveLocalStorage(KEPT, this.kept);
  }

  /** The words that start the vaultllm that installed this plugin; null when it was put here by other means. */
  async installer() {
    const text = await this.app.vault.adapter.read(`${this.manifest.dir}/installed.json`).catch(() => "{}");
    const { program } = parsed(text, {}) || {};
    return Array.isArray(program) && program.length && program.every((word) => typeof word === "string") ? program : null;
  }

  /** A command that is there where a note is open that `fits`. */
  ofNote(act, fits = () => true) {
    return (checking) => {
      const file = this.app.workspace.getActiveFile();
      if (!file || !["md", "canvas"].includes(file.extension) || !fits(file)) return false;
      if (!checking) void act(file);
      return true;
    };
  }

  wrong(error) {
    if (!(error instanceof Wrong)) console.error("vaultllm", error);
    new Notice(error.message + (error.code ? ` (${error.code})` : ""), 15_000);
  }

  /** Do something long under a notice; undefined when it failed, which was told then. */
  async busy(text, work) {
    const notice = spoken(text);
    try {
      return await work((at) => notice.set(`${text} ${progressText(at)}`));
    } catch (error) {
      this.wrong(error);
      return undefined;
    } finally {
      notice.hide();
    }
  }

  /** What was typed is on the disk before vaultllm reads it. */
  async saved() {
    await this.app.workspace.getActiveViewOfType(MarkdownView)?.save();
  }

  /** Open a note at a line (from 1). A note that was written just now is waited for. */
  async openNote(path, line = 1, where = false) {
    let file = this.app.vault.getFileByPath(path);
    for (let left = path.startsWith(".") ? 0 : 30; !file && left; left--) {
      await pause(100);
      file = this.app.vault.getFileByPath(path);
    }
    if (!file) {
      new Notice(path.startsWith(".") ? "This talk was imported; it stands in no note." : `${path} is not there, or Obsidian does not see it yet.`);
      return;
    }
    const leaf = this.app.workspace.getLeaf(where);
    await leaf.openFile(file, { eState: { line: line - 1 } });
    if (!(leaf.view instanceof MarkdownView)) return;
    const { editor } = leaf.view;
    const at = { line: Math.min(line - 1, editor.lastLine()), ch: 0 };
    editor.setCursor(at);
    editor.scrollIntoView({ from: at, to: at }, true);
  }

  // -- the commands

  askSelection() {
    const context = this.app.workspace.getActiveViewOfType(MarkdownView)?.editor.getSelection() || "";
    const path = this.app.workspace.getActiveFile()?.path;
    const title = context ? "Ask about the selection" : "Ask your vault";
    askModal(this.app, { title, context, ask: (asked) => this.ask(asked, context ? path : undefined, true) });
  }

  askNote(file) {
    askModal(this.app, { title: `Ask about ${file.basename}`, ask: (asked) => this.ask(asked, file.path) });
  }

  /** Ask, and open the answer; `anyway`: without the note where vaultllm does not read it (an answer, an ignored folder). */
  async ask(question, note, anyway = false) {
    const result = await this.busy("Asking your vault…", async (told) => {
      await this.saved();
      try {
        return await this.link.call("ask", note ? { question, note } : { question }, told);
      } catch (error) {
        if (!note || !anyway || error.code !== "E-DATA") throw error;
        return this.link.call("ask", { question }, told);
      }
    });
    if (result) await this.openNote(result.note, 1, "tab");
  }

  async reply(file) {
    await this.busy("Writing a reply…", async (told) => {
      await this.saved();
      return this.link.call("reply", { path: file.path }, told);
    });
  }

  async showRelated() {
    const { workspace } = this.app;
    const leaf = workspace.getLeavesOfType(RELATED)[0] || workspace.getRightLeaf(false);
    await leaf.setViewState({ type: RELATED, active: true });
    await workspace.revealLeaf(leaf);
  }

  async ingest() {
    const result = await this.busy("Reading your notes…", async (told) => {
      await this.saved();
      return this.link.call("ingest", {}, told);
    });
    if (!result) return;
    const { parsed: read, removed, failed } = result.notes;
    const wrong = failed.length ? `; ${failed.length} could not be read, see the status` : "";
    new Notice(`${read} notes read, ${removed} removed, ${result.scenes.total} scenes in the memory${wrong}.`);
    void this.refresh();
  }

  async retrain() {
    if (this.training) return;
    this.training = true;
    const stop = () => this.link.stopTraining().catch((error) => this.wrong(error));
    const notice = spoken("Training…", { button: "Stop", act: stop });
    try {
      const at = await this.link.retrain((now) => {
        notice.set(progressText(now));
        this.words.setText(barText({ training: { ...now, state: "running" } }, true)); // its own look comes twice a minute
      });
      if (at.error) throw new Wrong(at.error.message, at.error.code);
      const { report } = at.result || {};
      const open = { button: "Open the report", act: () => this.openNote(report, 1, "tab"), stays: 0 };
      if (at.result) spoken(trainedText(at.result), report ? open : { stays: 15_000 });
    } catch (error) {
      if (!this.gone) this.wrong(error);
    } finally {
      this.training = false;
      notice.hide();
      void this.refresh();
    }
  }

  async rate(file, rating) {
    const result = await this.link.call("rate", { answer: file.path, rating }).catch((error) => this.wrong(error));
    if (!result) return;
    await this.app.fileManager.processFrontMatter(file, (properties) => (properties[result.property] = rating));
    new Notice(`Kept: this answer is ${rating}.`);
  }

  async forget(file) {
    const plan = await this.busy("Looking what would go…", () => this.link.call("forget", { what: file.path, dry_run: true }));
    if (!plan) return;
    const lines = ["This goes out of memory, datasets and logs; trainings that saw it are taken out of use. The note itself stays as it is.", ...forgetLines(plan)];
    if (!(await confirmed(this.app, { title: `Forget ${file.basename}?`, lines, button: "Forget", warns: true }))) return;
    const result = await this.busy("Forgetting, and searching every file for it…", (told) => this.link.call("forget", { what: file.path, yes: true }, told));
    if (result) new Notice(`Forgotten: ${forgetLines(result)[0]}. ${result.searched.files} files searched, nothing of it is left.`, 15_000);
  }

  async rollback() {
    const lines = ["The training before the present one answers again, or the base model if there was none."];
    if (!(await confirmed(this.app, { title: "Roll back?", lines, button: "Roll back" }))) return;
    const result = await this.busy("Rolling back…", () => this.link.call("rollback"));
    if (result) new Notice(result.current ? `Training ${result.current} answers now.` : "No training answers now: memory, or the base model.");
  }

  /** A link from outside: what writes is asked about first; forgetting, training and rolling back are for your own hand. */
  async followed(data) {
    try {
      const { action, text, path } = wanted(data);
      if (action === "search") new SearchModal(this, text).open();
      else if (action === "status") statusModal(this);
      else if (action === "ask") askModal(this.app, { title: "Ask your vault", question: text, ask: (asked) => this.ask(asked) });
      else {
        const file = path ? this.app.vault.getFileByPath(path) : this.app.workspace.getActiveFile();
        if (action === "reply" && !file) throw new Wrong(`There is no note ${path}`);
        const lines = ["A link from outside Obsidian asks for this.", action === "reply" ? `A reply is written at the end of ${file.path}.` : "Changed notes are read."];
        if (!(await confirmed(this.app, { title: "Follow the link?", lines, button: action === "reply" ? "Reply" : "Ingest" }))) return;
        await (action === "reply" ? this.reply(file) : this.ingest());
      }
    } catch (error) {
      this.wrong(error);
    }
  }

  // -- by itself

  async startWatching() {
    window.setTimeout(() => this.gone || void this.refresh(), 5_000); // by then it listens
    await this.link.watch().catch((error) => this.wrong(error));
  }

  /** How it stands; whether a server told it is kept in `listens`. */
  async look() {
    this.listens = Boolean(await this.link.place());
    return this.link.call("status");
  }

  async refresh() {
    try {
      this.words.setText(barText(await this.look(), this.listens));
      setTooltip(this.bar, "Show how vaultllm stands", { placement: "top" });
    } catch (error) {
      this.words.setText("Vaultllm: not ready");
      setTooltip(this.bar, error.message, { placement: "top" });
    }
  }
};

function insertQuestion(editor) {
  const { line } = editor.getCursor();
  const before = line ? editor.getLine(line - 1) : "";
  const after = line < editor.lastLine() ? editor.getLine(line + 1) : "";
  const { text, from, to, cursor } = questionAt(line, editor.getLine(line), before, after);
  editor.replaceRange(text, from, to);
  editor.setCursor(cursor);
}

Object.assign(module.exports, { // for the tests: what needs no Obsidian
  barText, candidates, commandLine, complaint, forgetLines, marked, placeOf, progressText, questionAt, shownSettings, statusLines, titleOf, trainedText, wanted, withSelection,
});
