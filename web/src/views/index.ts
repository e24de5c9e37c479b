/** Registration of all views, in the order of the navigation. */
import { register } from "../view.js";
import "./map.js";
import "./tokenizer.js";
import "./embedding.js";
import "./tracks.js";
import "./cell.js";
import "./qkv.js";
import "./grid.js";
import "./heads.js";
import "./block.js";
import "./lens.js";
import "./cache.js";
import "./roles.js";
import "./edits.js";
import "./alignment.js";

register({ id: "map", title: "Model", element: "gf-view-map", part: "model", steps: "stages" });
register({ id: "tokenizer", title: "Tokenizer", element: "gf-view-tokenizer", part: "text", steps: "merges" });
register({ id: "embedding", title: "Embedding", element: "gf-view-embedding", part: "embed" });
register({
  id: "cell",
  title: "Attention",
  element: "gf-view-cell",
  part: "attention",
  arrows: ["query", "key", "head", "layer"],
  steps: "stages",
});
register({
  id: "qkv",
  title: "Q, K, V",
  element: "gf-view-qkv",
  part: "attention",
  arrows: ["query", "head", "layer"],
});
register({
  id: "grid",
  title: "All heads",
  element: "gf-view-grid",
  part: "attention",
  arrows: ["query", "key", "head", "layer"],
});
register({
  id: "roles",
  title: "Head roles",
  element: "gf-view-roles",
  part: "attention",
  arrows: ["query", "head", "layer"],
});
register({
  id: "heads",
  title: "Head outputs",
  element: "gf-view-heads",
  part: "attention",
  arrows: ["query", "head", "layer"],
});
register({ id: "block", title: "Block", element: "gf-view-block", part: "block", arrows: ["query", "layer"] });
register({ id: "lens", title: "Next token", element: "gf-view-lens", part: "head", arrows: ["query"] });
register({
  id: "tracks",
  title: "Residual stream",
  element: "gf-view-tracks",
  part: "model",
  arrows: ["query", "layer"],
});
register({
  id: "cache",
  title: "Cache",
  element: "gf-view-cache",
  part: "block",
  arrows: ["query", "layer"],
  steps: "tokens",
});
register({
  id: "fork",
  title: "Edits",
  element: "gf-view-edits",
  part: "model",
  arrows: ["query", "key", "head", "layer"],
});
register({
  id: "alignment",
  title: "Alignment",
  element: "gf-view-alignment",
  part: "source",
  arrows: ["query", "key", "head", "layer"],
  steps: "stages",
});
