/** JSON types of the API: the dataclasses of glassformer/inspect/views. */
import type { Edit } from "./lib/address.js";
import type { Num } from "./lib/number.js";

export interface Receipt {
  python: string;
  identity: string | null;
  error: Num | null;
}
export interface ScoredToken {
  id: number;
  text: string;
  value: Num;
}

export interface TraceToken {
  id: number;
  text: string;
  bytes?: number[] | null;
  start?: number;
  end?: number;
  logprob: Num | null;
}
export interface TraceInfo {
  id: string;
  model: string;
  n_prompt: number;
  tokens: TraceToken[];
  edits: Edit[];
  bytes: number;
  finish: string | null;
  source?: TokenizedText; // of encoder-decoder and recurrent models
  target?: TokenizedText; // the token after each of `tokens`
}
export interface TokenizedText {
  text: string;
  tokens: TraceToken[];
}
export interface GeneratedToken {
  id: number;
  text: string;
  logprob: Num | null;
  position: number;
  top?: ScoredToken[];
}

export interface Matrix {
  name: string;
  shape: number[];
  parameters: number;
}
export interface Part {
  kind: string;
  layer: number | null;
  parameters: number;
  matrices: Matrix[];
}
export interface Layer {
  n_heads: number;
  n_kv_heads: number;
  head_dim: number;
  window: number | null;
  rotary: boolean;
  d_ff: number;
  gated: boolean;
  experts: number | null;
  parallel: boolean;
  norm_at: string[];
}
export type Kind = "decoder" | "encoder-decoder" | "recurrent" | "encoder";
export interface Anatomy {
  kind: Kind;
  encoder: Layer[];
  unavailable: Record<string, string>;
  family: string;
  source: string;
  vocab_size: number;
  d_model: number;
  context: number | null;
  positions: string | null;
  tied: boolean;
  dtype: string;
  layers: Layer[];
  parts: Part[];
  shares: Record<string, number>;
  parameters: number;
  receipt: Receipt;
}
export interface Times {
  tokens: number;
  embedding: number;
  attention: number[];
  feed_forward: number[];
  head: number;
  total: number;
  receipt: Receipt;
}

export interface TokenInfo {
  id: number;
  text: string;
  bytes: string;
  start: number;
  end: number;
  special: boolean;
}
export interface Tokens {
  text: string;
  tokens: TokenInfo[];
  n_bytes: number;
  vocab_size: number;
  receipt: Receipt;
}
export interface Merge {
  parts: string[];
  bytes: string[];
  rank: number | null;
  at: number | null;
}
export interface Merges {
  word: string;
  steps: Merge[];
  ids: number[];
  receipt: Receipt;
}

export interface Embedding {
  token: ScoredToken;
  n_rows: number;
  row: Num[];
  nearest: ScoredToken[];
  tables: string[];
  tied: boolean;
  receipt: Receipt;
}
export interface MapPoint {
  id: number;
  text: string;
  x: number;
  y: number;
}
export interface EmbeddingMap {
  points: MapPoint[];
  explained: [number, number];
  receipt: Receipt;
}

export interface TokenSummary {
  position: number;
  id: number;
  text: string;
  generated: boolean;
  prob: Num | null;
  rank: number | null;
  top: ScoredToken[];
}
export interface Summary {
  tokens: TokenSummary[];
  n_prompt: number;
  next: ScoredToken[];
  receipt: Receipt;
}

export interface Tracks {
  norms: Num[][];
  windows: (number | null)[];
  context: number;
  receipt: Receipt;
}
export interface EditedCell {
  row: number;
  position: number;
  point: string;
}
export interface TraceDifference {
  distances: Num[][];
  token: number | null;
  edited: EditedCell | null;
  first: number | null;
  max_before: Num;
  receipt: Receipt;
}

export interface Product {
  matrix: string;
  of: "x" | "q" | "kv";
  weights: Num[];
  bias: Num;
  sum: Num;
  value: Num;
}
export interface Latent {
  reduced: Num[];
  normed: Num[];
}
export interface QKV {
  layer: number;
  head: number;
  kv_head: number;
  n_heads: number;
  n_kv_heads: number;
  position: number;
  dim: number;
  residual: Num[];
  x: Num[];
  latents: Partial<Record<"q" | "kv", Latent>>;
  q: Num[];
  k: Num[];
  v: Num[];
  q_rot: Num[];
  k_rot: Num[];
  products: Partial<Record<"q" | "k" | "v", Product>>;
  lengths: Record<string, Num>;
  rotated: number;
  normed: boolean;
  receipt: Receipt;
}

export type Attention = "attn" | "cross" | "encoder";
export interface Cell {
  layer: number;
  head: number;
  attention: Attention;
  kv_head: number;
  query: number;
  key: number;
  q: Num[];
  k: Num[];
  products: Num[];
  sum: Num;
  scale: Num;
  scaled: Num;
  softcap: Num | null;
  capped: Num;
  bias: Num;
  visible: boolean;
  window: number | null;
  score: Num;
  largest: Num;
  exp: Num;
  sink: Num | null;
  total: Num;
  prob: Num;
  scores: Num[];
  probs: Num[];
  entropy: Num;
  v: Num[];
  weighted: Num[];
  z: Num[];
  unscaled: Unscaled;
  receipt: Receipt;
}
/** The values of a cell that change if the scale is 1. */
export interface Unscaled {
  capped: Num;
  score: Num;
  largest: Num;
  exp: Num;
  total: Num;
  prob: Num;
  probs: Num[];
  entropy: Num;
  weighted: Num[];
  z: Num[];
}

export interface Heads {
  layer: number;
  position: number;
  z: Num[][];
  parts: Num[][];
  bias: Num[] | null;
  out: Num[];
  norms: Num[];
  shares: Num[];
  bias_share: Num;
  receipt: Receipt;
}
export interface Grid {
  layer: number;
  heads: number;
  rows: number;
  columns: number;
  pixels: string;
  bound: number;
  receipt: Receipt;
}

export interface RoleExample {
  query: number;
  key: number;
  share: Num;
}
export interface RoleRow {
  layer: number;
  scores: Record<string, Num[]>;
  evidence: Record<string, (RoleExample | null)[]>;
}
export interface Roles {
  scores: Record<string, Num[][]>;
  evidence: Record<string, (RoleExample | null)[][]>;
  n_queries: Record<string, number>;
  meanings: Record<string, string>;
  receipt: Receipt;
}

export interface LensToken {
  id: number;
  token: string;
  logprob: Num;
}
export interface LensRow {
  name: string;
  top: LensToken[][];
}
export interface Lens {
  rows: LensRow[];
  positions: number[];
  tokens: string[];
  receipt: Receipt;
}
export interface Attribution {
  position: number;
  target: [number, string];
  rival: [number, string];
  difference: Num;
  capped: Num;
  heads: Num[][];
  attention_bias: Num[];
  mlp: Num[];
  embedding: Num;
  constant: Num;
  edits: Num;
  receipt: Receipt;
}

export interface Neuron {
  index: number;
  act: Num;
  norm: Num;
  promotes: ScoredToken[];
  suppresses: ScoredToken[];
}
export interface Block {
  layer: number;
  position: number;
  resid_pre: Num[];
  attn_add: Num[];
  cross_add: Num[] | null;
  mlp_add: Num[];
  resid_post: Num[];
  norms: Record<string, Num>;
  parallel: boolean;
  d_ff: number;
  neurons: Neuron[];
  experts: { index: number; weight: Num }[];
  note: string | null;
  receipt: Receipt;
}

export interface SamplingStage {
  name: string;
  remaining: number;
  probs: Num[];
}
export interface Sampling {
  position: number;
  tokens: ScoredToken[];
  stages: SamplingStage[];
  n_draws: number;
  draws: number[];
  other_draws: number;
  receipt: Receipt;
}

export interface CacheSize {
  slots: number;
  bytes_per_slot: number;
  bytes: number;
}
export interface CacheLayer extends CacheSize {
  layer: number;
  contents: string;
  capacity: number;
  window: number | null;
  source: CacheSize | null;
}
export interface CacheView {
  layers: CacheLayer[];
  bytes: number;
  layer: number;
  mass: Num[][];
  source_mass: Num[][] | null;
  n_prompt: number;
  receipt: Receipt;
}
export interface CacheSpeed {
  tokens: number;
  source: number | null;
  prefill: number;
  decode: number;
  uncached: number;
  receipt: Receipt;
}

export interface Alignment {
  kind: Kind;
  source: { id: number; text: string }[];
  target: { id: number; text: string }[];
  ended: boolean;
  layer: number | null;
  head: number | null;
  n_layers: number;
  n_heads: number;
  probs: Num[][];
  receipt: Receipt;
}

export interface ForkStep {
  position: number;
  token: string | null;
  other: string | null;
  kl: Num | null;
}
export interface Fork {
  steps: ForkStep[];
  diverges_at: number | null;
  ends_at: number | null; // the length of the shorter text, if the other one continues it
  receipt: Receipt;
}
export interface Point {
  name: string;
  axes: string[];
  shape: number[];
}
export interface SweepBegin {
  position: number;
  target: number | null;
  rival: number | null;
  base: Num;
  metric: string;
  total: number;
}
export interface SweepResult {
  layer: number | null;
  head: number | null;
  position: number | null;
  value: Num;
  change: Num;
  done: number;
  total: number;
  edit: Edit;
}
