/** Directive that sets style properties. The content security policy of the page forbids style attributes. */
import { noChange } from "lit";
import { Directive, directive, PartType, type ElementPart, type PartInfo } from "lit/directive.js";

type Styles = Record<string, string | number>;

class SetStyle extends Directive {
  constructor(info: PartInfo) {
    super(info);
    if (info.type !== PartType.ELEMENT) throw new Error("look() must be used as an element expression");
  }

  /** Renders nothing: `update` sets the properties. */
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
export const setStyle = directive(SetStyle);
