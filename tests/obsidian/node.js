// Node's modules for a page, as far as a plugin of ours uses them. Each call is done by the process of the test: a POST to
// /bridge that DevTools holds back and answers, so that files, processes and addresses are real ones. What is not here is told.
export const desk = { missing: [], notices: [], uris: {} };

/** An object that has what it has: another name is told, and thrown. What begins with _ is the mock's own. */
export function strict(name, object) {
  return new Proxy(object, {
    get(target, key) {
      if (typeof key === "symbol" || key === "then") return target[key];
      if (!(key in target) || key.startsWith("_")) {
        desk.missing.push(`${name}.${key}`);
        throw new TypeError(`${name} has no ${key}`);
      }
      const value = target[key];
      return typeof value === "function" && !/^class|^function [A-Z]/.test(String(value)) ? value.bind(target) : value;
    },
    set(target, key, value) {
      desk.missing.push(`${name}.${String(key)} =`);
      throw new TypeError(`${name}.${String(key)} is not to be set`);
    },
  });
}

const opened = (answer) => {
  if (answer.error) throw Object.assign(new Error(answer.error.message), answer.error);
  return answer.value;
};
export const bridge = async (...call) => opened(await (await fetch("/bridge", { method: "POST", body: JSON.stringify(call) })).json());
export function bridgeNow(...call) {
  const request = new XMLHttpRequest();
  request.open("POST", "/bridge", false);
  request.send(JSON.stringify(call));
  return opened(JSON.parse(request.responseText));
}

class Emitter {
  on(name, heard) { ((this._heard ??= {})[name] ??= []).push(heard); return this; }
  once(name, heard) { return this.on(name, heard); }
  emit(name, ...data) {
    for (const heard of this._heard?.[name] ?? []) heard(...data);
    return Boolean(this._heard?.[name]?.length);
  }
}

class Buffer extends Uint8Array {
  toString(encoding = "utf8") {
    if (!/^utf-?8$/.test(encoding)) throw new TypeError(`no ${encoding} here`);
    return new TextDecoder().decode(this);
  }
  static from(text) { return new Buffer(new TextEncoder().encode(text)); }
  static concat(parts) {
    const all = new Buffer(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) all.set(part, (at += part.length) - part.length);
    return all;
  }
  static byteLength(text) { return new TextEncoder().encode(text).length; }
}
const bytes = (base64) => new Buffer(Uint8Array.from(atob(base64), (one) => one.charCodeAt(0)));

class Readable extends Emitter {
  setEncoding() { this._decoder = new TextDecoder(); return this; }
  _push(base64) {
    this.emit("data", this._decoder ? this._decoder.decode(bytes(base64), { stream: true }) : bytes(base64));
  }
}

class Writable extends Emitter {
  constructor(number) { super(); this._number = number; }
  write(text) { this._do("child-write", text); return true; }
  end(text) { if (text) this.write(text); this._do("child-end"); return this; }
  _do(what, ...given) { if (this._number >= 0) bridgeNow(what, this._number, ...given); } // where nothing was started nobody reads
}

class Child extends Emitter {
  constructor(number, pid) {
    super();
    [this._number, this.pid, this.exitCode, this.killed] = [number, pid, null, false];
    [this.stdin, this.stdout, this.stderr] = [new Writable(number), new Readable(), new Readable()];
  }
  kill(signal = "SIGTERM") { this.killed = true; return bridgeNow("child-kill", this._number, signal); }
  async _follow() {
    for (;;) {
      const [kind, data] = await bridge("child-next", this._number);
      if (kind !== "close") {
        this[kind]._push(data);
        continue;
      }
      this.stdout.emit("end");
      this.stderr.emit("end");
      this.exitCode = data;
      this.emit("exit", data, null);
      return this.emit("close", data, null);
    }
  }
}

function spawn(file, given, options = {}) {
  if (!Array.isArray(given) || given.some((one) => typeof one !== "string")) throw new TypeError("spawn wants an array of texts");
  if (options.shell) throw new TypeError("a shell stands between");
  let child;
  try {
    const [number, pid] = bridgeNow("spawn", file, given, { cwd: options.cwd ?? null, env: options.env ?? null });
    child = new Child(number, pid);
    setTimeout(() => child._follow());
  } catch (error) {
    child = new Child(-1, undefined);
    setTimeout(() => child.emit("error", error));
  }
  return child;
}

function execFile(file, given, options, done) {
  if (typeof options === "function") [options, done] = [{}, options];
  const child = spawn(file, given, options);
  const said = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"]) child[name].setEncoding("utf8").on("data", (text) => (said[name] += text));
  child.on("error", (error) => done(error, "", ""));
  child.on("close", (code) =>
    done(code ? Object.assign(new Error(`Command failed: ${file}`), { code }) : null, said.stdout, said.stderr),
  );
  return child;
}

function encoded(options) {
  const encoding = typeof options === "string" ? options : options?.encoding;
  if (!/^utf-?8$/.test(encoding ?? "")) throw new TypeError("a text file is read with its encoding");
}
const facts = (found) => ({ ...found, isFile: () => found.file, isDirectory: () => found.folder });
const constants = { F_OK: 0, R_OK: 4, W_OK: 2, X_OK: 1 };
const fs = {
  constants,
  existsSync: (path) => bridgeNow("exists", path),
  readFileSync: (path, options) => (encoded(options), bridgeNow("read", path)),
  accessSync: (path, mode = 0) => void bridgeNow("access", path, mode),
  statSync: (path) => facts(bridgeNow("stat", path)),
  realpathSync: (path) => bridgeNow("realpath", path),
  promises: strict("fs.promises", {
    constants,
    readFile: async (path, options) => (encoded(options), bridge("read", path)),
    access: async (path, mode = 0) => void (await bridge("access", path, mode)),
    stat: async (path) => facts(await bridge("stat", path)),
    realpath: async (path) => bridge("realpath", path),
  }),
};

const normal = (path) => {
  const parts = [];
  for (const part of path.split("/")) {
    if (part === ".." && parts.length && parts.at(-1) !== "..") parts.pop();
    else if (part && part !== ".") parts.push(part);
  }
  return (path.startsWith("/") ? "/" : "") + parts.join("/") || ".";
};
export const path = {
  sep: "/",
  delimiter: ":",
  normalize: normal,
  join: (...parts) => normal(parts.filter(Boolean).join("/")),
  resolve: (...parts) => normal(parts.reduce((all, part) => (part.startsWith("/") ? part : `${all}/${part}`), "/")),
  dirname: (of) => of.replace(/\/[^/]*$/, "") || (of.startsWith("/") ? "/" : "."),
  basename: (of, end = "") => of.replace(/^.*\//, "").replace(end && of.endsWith(end) ? end : /$^/, ""),
  extname: (of) => /[^/](\.[^./]*)$/.exec(of)?.[1] ?? "",
  isAbsolute: (of) => of.startsWith("/"),
};

export const about = bridgeNow("about");
const kill = (pid, name) => {
  if (name !== 0) throw new TypeError("a plugin only looks whether somebody lives");
  return bridgeNow("alive", pid), true;
};
window.process = strict("process", { platform: "linux", env: about.env, kill });
window.Buffer = Buffer;
window.desk = desk;
export const nodeModules = {
  fs: strict("fs", fs),
  "fs/promises": fs.promises,
  path: strict("path", path),
  process: window.process,
  os: strict("os", { homedir: () => about.env.HOME, platform: () => "linux", tmpdir: () => "/tmp", EOL: "\n" }),
  child_process: strict("child_process", { spawn, execFile }),
};
