//! The index' text: strict reading, canonical writing.

use super::{MAX_MODULES, MAX_NAME, MAX_TEXT, Module, ModuleIndex, ModuleIndexError};

/// The first line: the format's name and version.
pub(super) const MAGIC: &str = "iofs-modules 1";

/// Reads the lines. Names and dependencies are for [`ModuleIndex::check`] to judge.
pub(super) fn parse(text: &str) -> Result<ModuleIndex, ModuleIndexError> {
    if text.len() > MAX_TEXT {
        return Err(ModuleIndexError::TooLong(text.len()));
    }
    let mut lines = text.split_terminator('\n').zip(1..);
    if !text.ends_with('\n') || lines.next().map(|(line, _)| line) != Some(MAGIC) {
        return Err(ModuleIndexError::Line(1));
    }
    let release = lines.next().and_then(|(line, _)| line.strip_prefix("release ")).ok_or(ModuleIndexError::Line(2))?;
    let mut modules: Vec<Module> = Vec::new();
    let mut rank = 0;
    for (line, number) in lines {
        if let Some(words) = line.strip_prefix("module ") {
            if modules.len() == MAX_MODULES {
                return Err(ModuleIndexError::TooMany);
            }
            let (name, file) = words.split_once(' ').ok_or(ModuleIndexError::Line(number))?;
            modules.push(Module { name: name.to_owned(), file: file.to_owned(), ..Module::default() });
            rank = 0;
        } else {
            let last = modules.last_mut().ok_or(ModuleIndexError::Line(number))?;
            rank = detail(last, line, rank).ok_or(ModuleIndexError::Line(number))?;
        }
    }
    Ok(ModuleIndex { release: release.to_owned(), modules })
}

/// Takes one line of a module, if it may stand behind a line of `rank`, and says its own rank.
fn detail(module: &mut Module, line: &str, rank: u8) -> Option<u8> {
    let names = |value: &str| value.split(' ').map(str::to_owned).collect();
    // Only aliases repeat, and the writer leaves out what is empty.
    match line.split_once(' ') {
        None if line == "always" && rank < 1 => {
            module.always = true;
            Some(1)
        }
        Some((_, "")) => None,
        Some(("before", value)) if rank < 2 => {
            module.before = names(value);
            Some(2)
        }
        Some(("after", value)) if rank < 3 => {
            module.after = names(value);
            Some(3)
        }
        Some(("options", value)) if rank < 4 => {
            module.options = value.to_owned();
            Some(4)
        }
        Some(("alias", value)) => {
            module.aliases.push(value.to_owned());
            Some(5)
        }
        _ => None,
    }
}

/// Appends a module's lines.
pub(super) fn write_module(module: &Module, text: &mut String) {
    let mut line = |words: &[&str]| {
        text.push_str(&words.join(" "));
        text.push('\n');
    };
    line(&["module", &module.name, &module.file]);
    if module.always {
        line(&["always"]);
    }
    for (key, names) in [("before", &module.before), ("after", &module.after)] {
        if !names.is_empty() {
            line(&[key, &names.join(" ")]);
        }
    }
    if !module.options.is_empty() {
        line(&["options", &module.options]);
    }
    for alias in &module.aliases {
        line(&["alias", alias]);
    }
}

/// Checks that a module's words survive the format and name nothing outside its folder.
pub(super) fn check_module(module: &Module) -> Result<(), ModuleIndexError> {
    let bad = |word: &str| Err(ModuleIndexError::Word(word.to_owned()));
    check_word(&module.name)?;
    check_word(&module.file)?;
    if module.name.contains('-') {
        return bad(&module.name);
    }
    for name in module.before.iter().chain(&module.after) {
        check_word(name)?;
        if name.contains('-') {
            return bad(name);
        }
    }
    for alias in &module.aliases {
        if alias.is_empty() || !alias.bytes().all(|byte| byte.is_ascii_graphic()) {
            return bad(alias);
        }
    }
    // The kernel splits parameters at blanks; control characters would break the line or the call.
    if module.options.bytes().any(|byte| byte.is_ascii_control()) {
        return bad(&module.options);
    }
    Ok(())
}

/// Checks one name: short, printable, no `/` and no leading dot, since it becomes part of a path.
pub(super) fn check_word(word: &str) -> Result<(), ModuleIndexError> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if word.is_empty() || word.len() > MAX_NAME || word.starts_with('.') || !word.bytes().all(allowed) {
        return Err(ModuleIndexError::Word(word.to_owned()));
    }
    Ok(())
}
