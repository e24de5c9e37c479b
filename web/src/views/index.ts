/** The views of the page, in the order in which they stand. */
import { register } from "../view.js";
import "./map.js";
import "./tokenizer.js";
import "./qkv.js";
import "./cell.js";
import "./grid.js";

register({ id: "map", title: "Map", element: "gf-view-map", place: "model" });
register({ id: "tokenizer", title: "Tokenizer", element: "gf-view-tokenizer", place: "text" });
register({ id: "cell", title: "Attention", element: "gf-view-cell", place: "attention", arrows: ["query", "key", "head", "layer"] });
register({ id: "qkv", title: "Q, K, V", element: "gf-view-qkv", place: "attention", arrows: ["query", "head", "layer"] });
register({ id: "grid", title: "All heads", element: "gf-view-grid", place: "attention", arrows: ["query", "key", "head", "layer"] });
