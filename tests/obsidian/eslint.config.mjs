// How the Obsidian plugin is linted: as its reviewers do (eslint-plugin-obsidianmd, recommended), and with its rules that need types.
// Run in vaultllm/obsidian/, where the linter looks for the manifest: `make lint-plugin`.
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import obsidianmd from "eslint-plugin-obsidianmd";
import globals from "globals";
import tseslint from "typescript-eslint";

const manifest = { preprocess: (text) => [{ text: `(${text})`, filename: "0.js" }], postprocess: ([found]) => found };

export default [
  ...obsidianmd.configs.recommended,
  {
    files: ["main.js"],
    languageOptions: {
      sourceType: "commonjs", // no build step: this is the file that Obsidian loads
      globals: globals.commonjs,
      parser: tseslint.parser,
      parserOptions: { ecmaFeatures: { globalReturn: true }, project: "tsconfig.json", tsconfigRootDir: dirname(fileURLToPath(import.meta.url)) },
    },
    rules: {
      ...obsidianmd.ruleConfigs.recommendedTypeChecked,
      "@typescript-eslint/no-require-imports": ["error", { allow: ["^(obsidian|fs|os|path|child_process)$"] }],
    },
  },
  { files: ["manifest.json"], processor: { meta: { name: "manifest", version: "1" }, ...manifest } },
  {
    files: ["**/manifest.json/*.js"],
    languageOptions: { parser: tseslint.parser },
    rules: { "@typescript-eslint/no-unused-expressions": "off", "obsidianmd/validate-manifest": "error" },
  },
];
