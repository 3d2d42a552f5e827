// Which of the window's dialogs are open, and questions that wait for a yes. Whoever needs one asks here; `frame/` draws.

export interface Question {
  title: string;
  /** What is lost. */
  text: string;
  /** The word on the button: `Destroy`. */
  yes: string;
  destructive?: boolean;
  /** More facts, one a line, such as the names of what goes. */
  items?: string[];
}

export interface NameQuestion {
  title: string;
  label: string;
  yes: string;
  value?: string;
  placeholder?: string;
  hint?: string;
  /** Does the work; the dialog stays open and shows the error when it fails. */
  submit: (value: string) => Promise<void>;
}

export class Dialogs {
  create = $state(false);
  palette = $state(false);
  shortcuts = $state(false);
  question = $state.raw<Question | null>(null);
  naming = $state.raw<NameQuestion | null>(null);
  private answer: ((yes: boolean) => void) | null = null;

  /** Asks before something is lost. */
  confirm(question: Question): Promise<boolean> {
    this.answer?.(false);
    this.question = question;
    return new Promise((resolve) => (this.answer = resolve));
  }

  /** The user's answer. */
  answered(yes: boolean): void {
    this.question = null;
    this.answer?.(yes);
    this.answer = null;
  }

  /** Asks for one line of text and does something with it. */
  ask(question: NameQuestion): void {
    this.naming = question;
  }
}
