import { defineConfig } from "vite";

// The page is served from / by the same process that answers /v1; while developing, GLASSFORMER names that process.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../glassformer/web_dist",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    license: { fileName: "assets/licenses.md" },
  },
  server: {
    proxy: Object.fromEntries(
      ["/v1", "/health"].map((path) => [path, process.env["GLASSFORMER"] ?? "http://127.0.0.1:8000"]),
    ),
  },
});
