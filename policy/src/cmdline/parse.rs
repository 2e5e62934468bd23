//! Splitting the command line as the kernel does (`lib/cmdline.c`, `next_arg`).

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The parameter as written, without its quotes.
    pub text: String,
    /// The name, with `_` for `-`: kernel and systemd take them for one letter.
    pub name: String,
    /// What follows the first `=`, if there is one.
    pub value: Option<String>,
}

impl Parameter {
    fn new(text: String) -> Self {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), None),
        };
        Self { name: name.replace('-', "_"), value, text }
    }

    /// Whether this is the parameter `pattern`, which is a name or `name=value`.
    pub fn is(&self, pattern: &str) -> bool {
        let pattern = Self::new(pattern.to_owned());
        self.name == pattern.name && (pattern.value.is_none() || self.value == pattern.value)
    }

    /// The value as a switch: absent means yes, as in `rd.shell`. `None` if it is no boolean.
    pub fn switch(&self) -> Option<bool> {
        match self.value.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("1" | "y" | "yes" | "t" | "true" | "on") => Some(true),
            Some("0" | "n" | "no" | "f" | "false" | "off") => Some(false),
            Some(_) => None,
        }
    }

    /// Whether the value says no.
    pub fn is_off(&self) -> bool {
        self.switch() == Some(false)
    }
}

/// Splits a line into parameters and, after `--`, arguments for init. Double quotes keep spaces together.
pub fn parse(line: &str) -> (Vec<Parameter>, Vec<String>) {
    let mut words = words(line).into_iter();
    let parameters = words.by_ref().take_while(|word| word != "--").map(Parameter::new).collect();
    (parameters, words.collect())
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            // The kernel's isspace() in Latin-1: a no-break space also separates.
            ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{a0}' if !quoted => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            }
            other => word.push(other),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}
