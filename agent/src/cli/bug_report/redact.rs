//! Nothing that opens a door goes into a report.

use serde_json::Value;

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";
/// A name with one of these is the name of a secret.
const SECRET_NAMES: [&str; 6] =
    ["password", "passwd", "secret", "token", "credential", "private_key"];

/// Takes out private keys and tokens, wherever they are in the text.
pub(super) fn redact_text(text: &str) -> String {
    redact_tokens(&redact_keys(text))
}

/// Takes out what is known to be secret by the kind of the object or the name of the field: data
/// of Secrets, values of variables with a secret's name, and what `kubectl apply` has noted.
pub(super) fn redact_object(object: &mut Value) {
    if object.get("kind").is_some_and(|kind| kind == "Secret") {
        for field in ["data", "stringData"] {
            if let Some(data) = object.get_mut(field).and_then(Value::as_object_mut) {
                data.values_mut().for_each(|value| *value = REDACTED.into());
            }
        }
    }
    if let Some(annotations) =
        object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    redact_variables(object);
}

/// `{name, value}`, as in a container's `env`.
fn redact_variables(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let secret =
                fields.get("name").and_then(Value::as_str).is_some_and(is_name_of_a_secret);
            if secret && let Some(value) = fields.get_mut("value") {
                *value = REDACTED.into();
            }
            fields.values_mut().for_each(redact_variables);
        }
        Value::Array(values) => values.iter_mut().for_each(redact_variables),
        _ => {}
    }
}

fn is_name_of_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

/// PEM blocks of private keys; in JSON their lines are joined by `\n`.
fn redact_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const KEY: &str = "PRIVATE KEY-----";
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(start);
        kept.push_str(before);
        let label = block.get(BEGIN.len()..).unwrap_or_default();
        // The label ends with the first dashes.
        let is_key = label
            .find("-----")
            .and_then(|end| label.get(..end + 5))
            .is_some_and(|label| label.ends_with(KEY));
        if !is_key {
            kept.push_str(BEGIN);
            rest = label;
            continue;
        }
        kept.push_str(REDACTED);
        // A block that is cut off hides all that follows: better too much than a key.
        rest = block
            .find("-----END ")
            .and_then(|end| block.get(end + "-----END ".len()..))
            .and_then(|after| after.find("-----").and_then(|end| after.get(end + 5..)))
            .unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

/// JSON Web Tokens: three parts of base64url, the first of which begins an object (`eyJ` is `{"`),
/// and whatever follows `Bearer`.
fn redact_tokens(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
    loop {
        let token = rest.find("eyJ").map(|at| (at, 0));
        let bearer = rest.find("Bearer ").map(|at| (at, "Bearer ".len()));
        let Some((at, kept_prefix)) = token.into_iter().chain(bearer).min() else { break };
        let start = at + kept_prefix;
        let (before, after) = rest.split_at(start);
        kept.push_str(before);
        let end = after.find(|c| !is_part(c)).unwrap_or(after.len());
        let (word, following) = after.split_at(end);
        let secret = kept_prefix > 0 || word.matches('.').count() >= 2;
        kept.push_str(if secret && !word.is_empty() { REDACTED } else { word });
        rest = following;
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_taken_out_and_certificates_stay() {
        let text = "a\n-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n\
                    -----BEGIN EC PRIVATE KEY-----\nsecret\n-----END EC PRIVATE KEY-----\nb";
        assert_eq!(
            redact_text(text),
            "a\n-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n[redacted]\nb"
        );
        // As a log line has it, in JSON, and cut off.
        assert_eq!(
            redact_text(
                r#"{"key":"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n"}"#
            ),
            r#"{"key":"[redacted]\n"}"#
        );
        assert_eq!(redact_text("x -----BEGIN PRIVATE KEY-----\nabc"), "x [redacted]");
    }

    #[test]
    fn tokens_are_taken_out() {
        assert_eq!(
            redact_text("token eyJhbGciOi.eyJpc3Mi.c2ln-_x, next"),
            "token [redacted], next"
        );
        assert_eq!(
            redact_text("Authorization: Bearer abc.def\n"),
            "Authorization: Bearer [redacted]\n"
        );
        assert_eq!(
            redact_text("eyJ is no token, nor is eyJhbGci"),
            "eyJ is no token, nor is eyJhbGci"
        );
        assert_eq!(redact_text("Grüße Bearer ä"), "Grüße Bearer ä");
    }

    #[test]
    fn objects_lose_what_their_kind_or_names_say_is_secret() {
        let mut secret = json!({"kind": "Secret", "data": {"a": "Yg=="}, "metadata": {
            "managedFields": [1],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "Yg=="}
        }});
        redact_object(&mut secret);
        assert_eq!(
            secret,
            json!({"kind": "Secret", "data": {"a": "[redacted]"}, "metadata": {"annotations": {}}})
        );
        let mut pod = json!({"spec": {"containers": [{"name": "main", "env": [
            {"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "PORT", "value": "80"}
        ]}]}});
        redact_object(&mut pod);
        let variables = pod.pointer("/spec/containers/0/env").unwrap();
        assert_eq!(variables[0]["value"], "[redacted]");
        assert_eq!(variables[1]["value"], "80");
    }
}
