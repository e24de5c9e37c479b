/** The views of the page, in the order in which they stand. */
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
import "./fork.js";
import "./alignment.js";

register({ id: "map", title: "Map", element: "gf-view-map", place: "model", steps: "the stages" });
register({ id: "tokenizer", title: "Tokenizer", element: "gf-view-tokenizer", place: "text", steps: "the merges" });
register({ id: "embedding", title: "Embedding", element: "gf-view-embedding", place: "embed" });
register({
  id: "cell",
  title: "Attention",
  element: "gf-view-cell",
  place: "attention",
  arrows: ["query", "key", "head", "layer"],
  steps: "the cell's stages",
});
register({ id: "qkv", title: "Q K V", element: "gf-view-qkv", place: "attention", arrows: ["query", "head", "layer"] });
register({
  id: "grid",
  title: "All heads",
  element: "gf-view-grid",
  place: "attention",
  arrows: ["query", "key", "head", "layer"],
});
register({
  id: "roles",
  title: "Roles",
  element: "gf-view-roles",
  place: "attention",
  arrows: ["query", "head", "layer"],
});
register({
  id: "heads",
  title: "Wₒ",
  element: "gf-view-heads",
  place: "attention",
  arrows: ["query", "head", "layer"],
});
register({ id: "block", title: "Block", element: "gf-view-block", place: "block", arrows: ["query", "layer"] });
register({ id: "lens", title: "Next token", element: "gf-view-lens", place: "head", arrows: ["query"] });
register({ id: "tracks", title: "Tracks", element: "gf-view-tracks", place: "model", arrows: ["query", "layer"] });
register({
  id: "cache",
  title: "Cache",
  element: "gf-view-cache",
  place: "block",
  arrows: ["query", "layer"],
  steps: "the tokens",
});
register({
  id: "fork",
  title: "Edit and fork",
  element: "gf-view-fork",
  place: "model",
  arrows: ["query", "key", "head", "layer"],
});
register({
  id: "alignment",
  title: "Alignment",
  element: "gf-view-alignment",
  place: "source",
  arrows: ["query", "key", "head", "layer"],
  steps: "the cell's stages",
});
