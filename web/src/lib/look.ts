/** Styles that depend on numbers, set one by one: the page's policy allows no style that stands in the markup. */
import { noChange } from "lit";
import { Directive, directive, PartType, type ElementPart, type PartInfo } from "lit/directive.js";

type Styles = Record<string, string | number>;

class Look extends Directive {
  constructor(info: PartInfo) {
    super(info);
    if (info.type !== PartType.ELEMENT) throw new Error("look() stands in a tag, by itself");
  }

  /** Nothing is rendered: `update` sets the styles. */
  render(...all: [Styles]): typeof noChange {
    void all;
    return noChange;
  }

  override update(part: ElementPart, [styles]: [Styles]): typeof noChange {
    for (const [name, value] of Object.entries(styles))
      (part.element as HTMLElement).style.setProperty(name, String(value));
    return noChange;
  }
}

/** `<i ${look({ width: "3px", "--tone": "red" })}>` */
export const look = directive(Look);
