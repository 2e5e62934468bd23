//! The metadata's JSON: bounded in depth and number, and without names that occur twice.
//!
//! A [`Field`] is a value together with its path, so that whatever is wrong with it says where it is.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::error::{Fault, FieldError};

/// How deep values may lie in each other. What cryptsetup and systemd write is five deep.
const MAX_DEPTH: u8 = 12;
/// How many values there may be. The largest header by cryptsetup has some thousands; each takes tens of bytes of memory.
const MAX_VALUES: usize = 20_000;
/// How many names an object may have: looking for one that occurs twice takes the square of this.
const MAX_NAMES: usize = 256;
/// As much of a text as an error shows, in characters.
const SHOWN: usize = 60;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(u64),
    /// A negative number or a fraction: nothing in LUKS2 is one.
    OtherNumber,
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    /// # Errors
    /// The text of what is wrong.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut budget = MAX_VALUES;
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let seed = Seed { budget: &mut budget, depth: MAX_DEPTH };
        let value = seed.deserialize(&mut deserializer);
        value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| error.to_string())
    }

    fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::OtherNumber => "a negative number or a fraction".to_owned(),
            Self::Text(text) => quoted(text),
            Self::List(values) => format!("a list of {}", values.len()),
            Self::Object(_) => "an object".to_owned(),
        }
    }
}

/// A text as errors show it.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

struct Seed<'b> {
    budget: &'b mut usize,
    depth: u8,
}

impl Seed<'_> {
    fn inner(&mut self) -> Seed<'_> {
        Seed { budget: self.budget, depth: self.depth - 1 }
    }

    fn enter<E: Error>(&self) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom(format_args!("values lie in each other more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.budget.checked_sub(1) {
            Some(left) => *self.budget = left,
            None => return Err(D::Error::custom(format_args!("there are more than {MAX_VALUES} values"))),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_i64<E>(self, _value: i64) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(self.inner())? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut members: Vec<(String, Value)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format_args!("{} occurs twice in an object", quoted(&name))));
            }
            if members.len() == MAX_NAMES {
                return Err(A::Error::custom(format_args!("an object has more than {MAX_NAMES} names")));
            }
            members.push((name, map.next_value_seed(self.inner())?));
        }
        Ok(Value::Object(members))
    }
}

/// A value, or that there is none, and where: small, since it is passed around. The path is made where something is wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    root: &'a Value,
    /// The value; of a member that is not there, the object.
    at: &'a Value,
    /// The name of a member that is not there.
    missing: Option<&'a str>,
}

impl<'a> Field<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { root: value, at: value, missing: None }
    }

    fn below(self, value: &'a Value) -> Self {
        Self { at: value, ..self }
    }

    fn value(self) -> Option<&'a Value> {
        if self.missing.is_none() { Some(self.at) } else { None }
    }

    pub(crate) fn path(self) -> String {
        let mut steps = Vec::new();
        find(self.root, self.at, &mut steps);
        steps.reverse();
        steps.extend(self.missing.map(str::to_owned));
        if steps.is_empty() { "JSON".to_owned() } else { steps.join(".") }
    }

    pub(crate) fn error(self, expected: impl Into<std::borrow::Cow<'static, str>>) -> Fault {
        let found = self.value().map_or_else(|| "nothing".to_owned(), Value::shown);
        FieldError::new(self.path(), expected, found)
    }

    /// A member of an object, which need not be there.
    ///
    /// # Errors
    /// This is no object.
    pub(crate) fn member(self, name: &'a str) -> Result<Self, Fault> {
        let found = self.object()?.iter().find(|(known, _)| known == name);
        Ok(match found {
            Some((_, value)) => self.below(value),
            None => Self { missing: Some(name), ..self },
        })
    }

    fn object(self) -> Result<&'a [(String, Value)], Fault> {
        match self.value() {
            Some(Value::Object(members)) => Ok(members),
            _ => Err(self.error("an object")),
        }
    }

    pub(crate) fn members(self) -> Result<Vec<(&'a str, Self)>, Fault> {
        let members = self.object()?.iter();
        Ok(members.map(|(name, value)| (name.as_str(), self.below(value))).collect())
    }

    pub(crate) fn list(self) -> Result<Vec<Self>, Fault> {
        match self.value() {
            Some(Value::List(values)) => Ok(values.iter().map(|value| self.below(value)).collect()),
            _ => Err(self.error("a list")),
        }
    }

    /// The values of a list, or the one value that stands for a list of one.
    pub(crate) fn one_or_more(self) -> Result<Vec<Self>, Fault> {
        match self.value() {
            Some(Value::Text(_)) => Ok(vec![self]),
            Some(Value::List(values)) if !values.is_empty() => self.list(),
            _ => Err(self.error("a text, or a list of texts")),
        }
    }

    pub(crate) fn is_absent(self) -> bool {
        self.missing.is_some()
    }

    /// This field where it is there.
    pub(crate) fn present(self) -> Option<Self> {
        self.missing.is_none().then_some(self)
    }

    pub(crate) fn text(self) -> Result<&'a str, Fault> {
        match self.value() {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(self.error("a text")),
        }
    }

    pub(crate) fn boolean(self) -> Result<bool, Fault> {
        match self.value() {
            Some(Value::Bool(value)) => Ok(*value),
            _ => Err(self.error("true or false")),
        }
    }

    /// A number of JSON between two others.
    pub(crate) fn number(self, least: u32, most: u32) -> Result<u32, Fault> {
        match self.value() {
            Some(Value::Number(value)) if (u64::from(least)..=u64::from(most)).contains(value) => Ok(*value as u32),
            _ => Err(self.error(format!("a number from {least} to {most}"))),
        }
    }

    /// A number of 64 bits, which LUKS2 writes as a text of decimal digits.
    pub(crate) fn decimal(self) -> Result<u64, Fault> {
        let digits = match self.value() {
            Some(Value::Text(text)) => decimal(text),
            _ => None,
        };
        digits.ok_or_else(|| self.error("a text of decimal digits"))
    }

    pub(crate) fn base64(self) -> Result<Vec<u8>, Fault> {
        STANDARD.decode(self.text()?).map_err(|_| self.error("base64"))
    }

    /// # Errors
    /// Names the first member that is none of these.
    pub(crate) fn only(self, known: &[&str]) -> Result<(), Fault> {
        match self.members()?.into_iter().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((_, field)) => Err(field.error("no such field")),
        }
    }
}

/// Collects the steps from a value, outwards, to one that lies in it.
fn find(inside: &Value, wanted: &Value, steps: &mut Vec<String>) -> bool {
    if std::ptr::eq(inside, wanted) {
        return true;
    }
    let step = match inside {
        Value::List(values) => {
            values.iter().position(|value| find(value, wanted, steps)).map(|position| position.to_string())
        }
        Value::Object(members) => {
            members.iter().find(|(_, value)| find(value, wanted, steps)).map(|(name, _)| shortened(name))
        }
        _ => None,
    };
    let found = step.is_some();
    steps.extend(step);
    found
}

/// A name as paths show it: whoever wrote the header chose it.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        None => name.escape_debug().to_string(),
        Some((end, _)) => format!("{}…", name[..end].escape_debug()),
    }
}

/// A number without a sign, and without zeros before it.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}
