// QuickAdd user script: ask vaultllm about the selection (or what you type), about this note, or let it reply here.
// Desktop only. No shell is involved: the program gets its arguments as a list and the question on standard input.

const WHAT = "What it does";
const PROGRAM = "Path of vaultllm";
const ASK = "ask";
const ASK_NOTE = "ask about this note";
const REPLY = "reply at the end of this note";

module.exports = {
  entry: start,
  settings: {
    name: "vaultllm",
    author: "vaultllm",
    options: {
      [WHAT]: { type: "dropdown", defaultValue: ASK, options: [ASK, ASK_NOTE, REPLY] },
      [PROGRAM]: {
        type: "text",
        defaultValue: "",
        placeholder: "/home/me/.local/bin/vaultllm",
        description: "What `which vaultllm` says in a terminal; empty: looked for in the usual places.",
      },
    },
  },
};

async function start(params, settings) {
  const { app, obsidian } = params;
  const say = (text) => new obsidian.Notice(text, 10000);
  if (!obsidian.Platform.isDesktopApp) {
    say("vaultllm runs on a computer, not on a phone");
    return null;
  }
  const what = (settings && settings[WHAT]) || ASK;
  const view = app.workspace.getActiveViewOfType(obsidian.MarkdownView);
  const file = app.workspace.getActiveFile();
  if (what !== ASK && !file) {
    say("Open a note first");
    return null;
  }
  if (view) await view.save(); // what you typed just now is on disk before vaultllm reads it

  let question = "";
  let command = ["--json", "reply", "--", file ? file.path : ""];
  if (what !== REPLY) {
    question = view ? view.editor.getSelection() : "";
    if (!question.trim()) question = (await params.quickAddApi.inputPrompt("Ask your vault")) || "";
    if (!question.trim()) return null;
    command = ["--json", "ask", ...(what === ASK_NOTE ? ["--note=" + file.path] : []), "-"];
  }

  const notice = new obsidian.Notice("vaultllm is thinking…", 0);
  try {
    const program = (settings && settings[PROGRAM]) || "vaultllm";
    const result = JSON.parse(await run(program, command, question, app.vault.adapter.getBasePath()));
    params.variables.vaultllm = result; // for the next step of the macro
    if (what !== REPLY) await app.workspace.openLinkText(result.note, "", true);
    return result.note;
  } catch (error) {
    say(error.message);
    return null;
  } finally {
    notice.hide();
  }
}

/** Start the program in the vault's folder; its standard output, or an Error with the line that it wrote about what is wrong. */
function run(program, command, input, cwd) {
  const { execFile } = require("child_process");
  const path = require("path");
  const home = require("os").homedir();
  // A program that was started from the desktop knows few folders; these are where pip, pipx, uv and Homebrew put commands.
  const more = [path.join(home, ".local", "bin"), "/opt/homebrew/bin", "/usr/local/bin"];
  const env = { ...process.env, PATH: [process.env.PATH, ...more].filter(Boolean).join(path.delimiter) };
  const options = { cwd, env, encoding: "utf8", maxBuffer: 64 * 1024 * 1024, windowsHide: true };
  return new Promise((resolve, reject) => {
    const child = execFile(program, command, options, (error, stdout, stderr) => {
      if (!error) return resolve(stdout);
      if (error.code === "ENOENT") return reject(new Error(`${program} was not found: set its full path in the script's settings`));
      const lines = stderr.trim().split("\n");
      reject(new Error(lines[lines.length - 1] || error.message));
    });
    child.stdin.on("error", () => {}); // it ended before it read all: its exit code says why
    child.stdin.end(input);
  });
}
