/** Styles shared by all elements. */
import { css } from "lit";

export const base = css`
  *,
  *::before,
  *::after {
    box-sizing: border-box;
  }
  :host {
    display: block;
    min-width: 0;
  }
  [hidden] {
    display: none !important;
  }
  h1,
  h2,
  h3,
  p,
  figure,
  ol,
  ul,
  dl,
  dd,
  table {
    margin: 0;
    padding: 0;
  }
  h2 {
    font-size: 1.3rem;
    font-weight: 600;
    letter-spacing: -0.012em;
    line-height: 1.25;
  }
  h3 {
    font-size: 0.86rem;
    font-weight: 600;
    line-height: 1.4;
  }
  p {
    max-width: 66ch;
  }
  ol,
  ul {
    list-style: none;
  }
  a {
    color: inherit;
  }
  .soft {
    color: var(--soft);
  }
  .small {
    font-size: 0.82rem;
  }
  .num,
  code {
    font-family: var(--mono);
    font-size: 0.9em;
    font-variant-numeric: tabular-nums;
  }
  .q {
    color: var(--query);
  }
  .k {
    color: var(--key);
  }
  .v {
    color: var(--value);
  }
  .r {
    color: var(--residual);
  }
  .f {
    color: var(--forward);
  }
  .q,
  .k,
  .v,
  .r,
  .f {
    font-weight: 550;
  }
  .away {
    position: absolute;
    width: 1px;
    height: 1px;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
  button,
  select,
  input,
  textarea {
    font: inherit;
    color: inherit;
  }
  button {
    background: var(--card);
    border: 1px solid var(--line);
    border-radius: 7px;
    padding: 0.3rem 0.75rem;
    cursor: pointer;
    line-height: 1.35;
    font-size: 0.86rem;
  }
  button:hover:not(:disabled) {
    border-color: var(--soft);
  }
  button:disabled {
    color: var(--soft);
    cursor: default;
  }
  button.strong:not(:disabled) {
    background: var(--ink);
    border-color: var(--ink);
    color: var(--paper);
  }
  button[aria-pressed="true"] {
    background: var(--ink);
    border-color: var(--ink);
    color: var(--paper);
  }
  select,
  input,
  textarea {
    background: var(--card);
    border: 1px solid var(--line);
    border-radius: 7px;
    padding: 0.3rem 0.55rem;
    min-width: 0;
  }
  :focus {
    outline: none;
  }
  :focus-visible {
    outline: 2px solid var(--focus);
    outline-offset: 2px;
  }
  .row {
    display: flex;
    flex-wrap: wrap;
    gap: 0.5rem 1rem;
    align-items: baseline;
  }
  .title {
    display: flex;
    flex-wrap: wrap;
    gap: 0.4rem 1.4rem;
    align-items: baseline;
    justify-content: space-between;
  }
  .wrap {
    overflow-x: auto;
  }
  .wrong {
    color: var(--key);
    font-size: 0.86rem;
    overflow-wrap: anywhere;
  }
  .stack {
    display: grid;
    gap: var(--gap);
    min-width: 0;
  }
  .stack > * {
    min-width: 0;
  }
  .close {
    gap: 0.5rem;
  }
  .stack > p {
    font-size: 0.94rem;
  }
  .stack > p.small {
    font-size: 0.82rem;
  }
  sub,
  sup {
    font-size: 0.72em;
    line-height: 0;
  }
  .tok {
    background: var(--wash);
    border-radius: 4px;
    padding: 0.02rem 0.22rem;
  }
  @media (prefers-reduced-motion: no-preference) {
    .soon {
      transition: opacity 0.15s;
    }
  }
`;
