// The app around the plugin, as far as one has to see and click it: files, tabs, a palette of commands, settings; for the test, `desk`.
import { about, desk, nodeModules, strict } from "./node.js";
import { App, MarkdownView, Modal, SuggestModal, TFile, TFolder, obsidian, setIcon } from "./obsidian.js";

Object.assign(desk, { commands: {}, tabs: [], modals: [] });

/** Files, tabs and panes, as they are now. */
desk.draw = () => {
  const { vault, workspace } = desk.app._real;
  const files = document.querySelector(".files");
  const shown = [];
  const walk = (folder, depth) => {
    const order = (one) => [one instanceof TFile ? 1 : 0, one.name.toLowerCase()].join();
    for (const one of [...folder.children].sort((a, b) => (order(a) < order(b) ? -1 : 1))) {
      shown.push([one, depth]);
      if (one instanceof TFolder) walk(one, depth + 1);
    }
  };
  walk(vault.getRoot(), 0);
  const drawn = shown.map(([one]) => one.path).join("\n") + `\n${workspace.getActiveFile()?.path}`;
  if (files.drawn !== drawn) {
    files.drawn = drawn;
    files.empty();
    for (const [one, depth] of shown) {
      const row = files.createDiv({ cls: one instanceof TFolder ? "folder" : "file", text: one.basename ?? one.name });
      row.style.paddingLeft = `${8 + 14 * depth}px`;
      row.dataset.path = one.path;
      row.toggleClass("is-active", one === workspace.getActiveFile());
      if (one instanceof TFile) row.addEventListener("click", () => workspace.getLeaf(false).openFile(one));
    }
  }
  for (const side of ["root", "right"]) {
    const leaves = [...workspace._leaves].filter((leaf) => leaf._side === side && leaf.view);
    const front = leaves.toSorted((a, b) => (b._used ?? 0) - (a._used ?? 0))[0];
    const tabs = document.querySelector(`.split-${side} .tabs`);
    tabs.empty();
    for (const leaf of leaves) {
      const tab = tabs.createDiv({ cls: "tab", text: leaf.view.getDisplayText() });
      tab.toggleClass("is-active", leaf === front);
      tab.addEventListener("click", () => workspace.setActiveLeaf(leaf));
      leaf.view.containerEl.toggle(leaf === front);
    }
    document.querySelector(`.split-${side}`).toggleClass("is-collapsed", side === "right" && !leaves.length);
  }
};

class Palette extends SuggestModal {
  getSuggestions(query) {
    const words = query.toLowerCase().split(/\s+/);
    const all = Object.values(desk.commands).filter((one) => desk.can(one));
    return all.filter((one) => words.every((word) => one.shown.toLowerCase().includes(word)));
  }
  renderSuggestion(command, el) { el.setText(command.shown); }
  onChooseSuggestion(command) { desk.run(command); }
}
/** Whether the palette offers a command now: one for an editor only in a note. */
desk.can = (command, checking = true) => {
  const view = desk.app._real.workspace.getActiveViewOfType(MarkdownView);
  if (command.editorCheckCallback) return view ? command.editorCheckCallback(checking, view.editor, view) : false;
  if (command.editorCallback) return Boolean(view) && (checking || command.editorCallback(view.editor, view) || true);
  return command.checkCallback ? command.checkCallback(checking) : checking || command.callback() || true;
};
desk.run = (command) => desk.can(command, false);

class Settings extends Modal {
  onOpen() {
    this.modalEl.addClass("mod-settings");
    const list = this.contentEl.createDiv("vertical-tab-header");
    list.createDiv({ cls: "vertical-tab-header-group-title", text: "Community plugins" });
    for (const tab of desk.tabs) {
      list.createDiv({ cls: "vertical-tab-nav-item is-active", text: tab._plugin.manifest.name });
      this.contentEl.append(tab.containerEl);
      tab.display();
    }
  }
  onClose() { for (const tab of desk.tabs) tab.hide(); }
}

desk.active = () => desk.app._real.workspace.getActiveFile()?.path ?? "";
/** For pictures: other names in the place of these, wherever they are shown. */
desk.rename = (instead) => {
  const renamed = (text) => Object.entries(instead).reduce((all, [was, now]) => all.replaceAll(was, now), text);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) if (texts.currentNode.data.includes("/")) texts.currentNode.data = renamed(texts.currentNode.data);
  for (const el of document.querySelectorAll("input")) el.placeholder = renamed(el.placeholder);
  for (const el of document.querySelectorAll(".modal input")) el.value = renamed(el.value);
};

/** A link of the app that somebody clicks. */
desk.follow = (uri) => {
  const [, action, query = ""] = /^obsidian:\/\/([^?]*)\??(.*)$/.exec(uri);
  desk.uris[action.replace(/\/$/, "")]({ ...Object.fromEntries(new URLSearchParams(query)), action });
};

desk.start = async (source, manifest, styles) => {
  desk.app = new App();
  const required = (name) => {
    if (name === "obsidian") return obsidian;
    if (!(name in nodeModules)) throw new Error(`Cannot find module '${name}'`);
    return nodeModules[name];
  };
  document.head.createEl("style", { text: styles });
  const module = { exports: {} };
  window.eval(`(function (require, module, exports) {${source}\n})\n//# sourceURL=plugin:${manifest.id}`)(required, module, module.exports);
  const Main = module.exports.default ?? module.exports;
  document.querySelector(".vault").setText(desk.app.vault.getName());
  desk.plugin = new Main(strict("app", desk.app), manifest);
  await desk.plugin.load();
  desk.draw();
  desk.app._real.workspace.layoutReady = true;
  for (const ready of desk.app._real.workspace._ready) ready();
  setInterval(async () => (await desk.app._real.vault._look(), desk.draw()), 300);
};

document.addEventListener("keydown", (event) => {
  const top = desk.modals.at(-1);
  if (top) top.scope._press(event);
  else if (event.ctrlKey && event.key === "p") (event.preventDefault(), new Palette(desk.app).open());
});
setIcon(document.querySelector(".gear"), "settings");
document.querySelector(".gear").addEventListener("click", () => new Settings(desk.app).open());
document.documentElement.dataset.ready = "1";
