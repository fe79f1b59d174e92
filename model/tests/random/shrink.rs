//! A failing mesh is made as small as it can be, so that one can read it.

use std::sync::Arc;

use weft_model::evaluate::Connection;
use weft_model::mesh::Mesh;

use crate::compare::{Difference, Lookups, compare, compile};

/// The smallest mesh found in which tables and evaluator still differ about the connection.
pub fn shrink(mut mesh: Mesh, connection: &Connection) -> (Mesh, Option<Box<Difference>>) {
    let differ = |mesh: &Mesh| {
        let cluster = compile(mesh);
        compare(mesh, &Lookups::of(&cluster), connection).and_then(Result::err)
    };
    let mut difference = differ(&mesh);
    loop {
        let smaller = candidates(&mesh)
            .into_iter()
            .find_map(|mesh| differ(&mesh).map(|difference| (mesh, difference)));
        let Some((smaller, found)) = smaller else { return (mesh, difference) };
        mesh = smaller;
        difference = Some(found);
    }
}

/// The mesh without one thing.
fn candidates(mesh: &Mesh) -> Vec<Mesh> {
    let mut found = Vec::new();
    macro_rules! without_one_of {
        ($($field:ident),*) => {$(
            for key in mesh.$field.keys() {
                let mut smaller = mesh.clone();
                smaller.$field.remove(key);
                found.push(smaller);
            }
        )*};
    }
    without_one_of!(
        policies,
        authorization,
        peer_authentication,
        services,
        endpoint_slices,
        pods,
        namespaces
    );
    for (object, specs) in &mesh.policies {
        for (index, policy) in specs.iter().enumerate() {
            for rule in 0..policy.rules.len() {
                let mut smaller = mesh.clone();
                let mut policy = (**policy).clone();
                policy.rules.remove(rule);
                smaller.policies.get_mut(object).unwrap()[index] = Arc::new(policy);
                found.push(smaller);
            }
        }
    }
    for (object, policy) in &mesh.authorization {
        for rule in 0..policy.rules.len() {
            let mut smaller = mesh.clone();
            let mut policy = (**policy).clone();
            policy.rules.remove(rule);
            smaller.authorization.insert(object.clone(), Arc::new(policy));
            found.push(smaller);
        }
    }
    found
}
